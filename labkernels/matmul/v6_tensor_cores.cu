// Matmul, v6: tensor cores. Each warp multiplies with mma.sync what ldmatrix brings it from shared memory, which cp.async keeps filled
// several tiles ahead. Runs on every GPU since Ampere (sm_80).
//   Idea      One mma.sync is 2048 multiplications for one instruction of a warp; an FMA is 32. What is left to do is to feed it: a warp
//             owns 64 x 64 of the result, so that 8 ldmatrix serve 32 mma; the fragments of the next 16 columns are loaded while these
//             are multiplied; global memory is asked for a tile STAGES - 1 tiles before it is needed; one barrier a tile.
//   Predicts  Bound by tensor cores, if shared memory keeps up: each 16 columns of k, a block of 128 x 256 reads 32 KiB and writes 12
//             KiB of it, at 128 bytes a cycle 352 cycles, for 256 mma, 64 in each quarter of a multiprocessor. An A100 takes 512
//             cycles for them. A Hopper GPU, whose mma.sync is slower than its wgmma but not slower than that, has less to spare.
//   Measured  data/measured/h200/matmul.csv, bf16: 500 TFLOP/s at 4096^3, 0.64 of cuBLAS, which uses wgmma (782); 513 at 8192^3, 0.75 of what cuBLAS
//             does there, where its power limits it. While it was made: mma.sync alone, on registers that never change, gives 645. ncu: the
//             tensor cores' pipe is busy for 82% of the clocks in which a multiprocessor has a block, shared memory for 61% (no conflicts), and
//             6% of the time goes to the last round of 512 blocks on 132 multiprocessors. Warps wait for that pipe (a third of their time) and
//             for fixed latencies of instructions between (another third), with two warps to a scheduler to hide them. Tried: 192 x 256 tiles
//             with warps of 96 x 64 spill, 397; fragments loaded in another order, 475 to 495; two blocks of 128 x 128, 471.
//   Wastes    On Hopper, the tensor cores that only wgmma reaches, and registers and instructions for addresses that TMA would compute.
//             A block computes nothing while it writes its result, unless another one shares its multiprocessor. And k is never split:
//             a result of fewer tiles than there are multiprocessors leaves some of them idle.
//
// Shared memory is swizzled: vectors of 16 bytes change places within their row so that neither eight rows of a column (ldmatrix) nor
// eight vectors of a row (cp.async) meet in a bank.
#include "cp_async.cuh"
#include "epilogue.cuh"
#include "ldmatrix.cuh"
#include "mma.cuh"
#include "vector.cuh"

// A tile of ROWS x COLS elements in shared memory, in vectors of 8 elements, and a thread's part in filling it from a matrix. Copies move
// WIDTH elements of a row: all of them lie in the matrix, or none.
template <class T, int ROWS, int COLS, int THREADS, int WIDTH>
struct Tile {
    static constexpr int VECTORS = COLS / 8;        // in a row
    static constexpr int STEP = THREADS / VECTORS;  // rows that all threads fill at a time
    static constexpr int COUNT = (ROWS + STEP - 1) / STEP;
    static constexpr int BYTES = ROWS * COLS * 2;
    static_assert(THREADS % VECTORS == 0 && (ROWS < STEP || ROWS % STEP == 0), "each thread fills one column of vectors");

    const int row = threadIdx.x / VECTORS, col = threadIdx.x % VECTORS * 8;  // of the thread's first vector
    const T* source;                 // where its next vector comes from
    const long long step, new_tile;  // how far it is to the next vector of the same tile, and on from there to the first of the next

    // The matrix's rows are `stride` elements apart; the next tile begins `next` elements after this one.
    __device__ Tile(const T* corner, long long stride, long long next)
        : source(corner + row * stride + col), step(STEP * stride), new_tile(next - COUNT * step) {}

    // The byte where a vector lies. Eight neighbouring rows, or vectors, lie in all 32 banks.
    __device__ static int place(int row, int vector) {
        return row * COLS * 2 + (vector ^ (VECTORS >= 8 ? row % 8 : row / 2 % 4)) * 16;
    }

    // Start to copy part `part` of `parts` of the thread's vectors, the parts one after the other. So many rows and columns of the matrix
    // are left, counted from the tile's corner; zeros come in place of what lies outside.
    __device__ __forceinline__ void copy(unsigned char* tile, int rows, int cols, int part, int parts) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            if (i < COUNT * part / parts || i >= COUNT * (part + 1) / parts) continue;
            const T* const from = source;
            source += step;
            if (ROWS < STEP && row >= ROWS) continue;
            const bool inside = rows - row > i * STEP && cols > col;
            unsigned char* to = tile + (STEP % 8 == 0 ? place(row, col / 8) + i * STEP * COLS * 2 : place(row + i * STEP, col / 8));
            if constexpr (WIDTH == 8) {
                cp_async_l2_if(inside, to, from);
            } else if constexpr (WIDTH > 1) {
#pragma unroll
                for (int u = 0; u < 8; u += WIDTH) cp_async<2 * WIDTH>(to + 2 * u, from + u, inside && cols - col > u ? 2 * WIDTH : 0);
            } else {
                Vector<unsigned short, 8> vector = {};
#pragma unroll
                for (int u = 0; u < 8; ++u) {
                    if (inside && cols - col > u) vector.element[u] = reinterpret_cast<const unsigned short*>(from)[u];
                }
                *reinterpret_cast<Vector<unsigned short, 8>*>(to) = vector;
            }
        }
        if (part == parts - 1) source += new_tile;
    }
};

// Which tile of the result a block computes. Blocks that run at the same time should share rows of A and columns of B in L2: so they go
// down `height` tiles, then one to the right, and so on.
__device__ inline int2 tile_of_block(int height, int tiles_m, int tiles_n) {
    height = min(height, tiles_m);
    const int band = blockIdx.x / (height * tiles_n), inside = blockIdx.x % (height * tiles_n);
    const int first = band * height;
    height = min(height, tiles_m - first);  // the last band is lower
    return make_int2(first + inside % height, inside / height);
}

// The warp's sums, WARP_M x WARP_N in mma.sync's fragments, finished and written to c from (first_row, first_col) on. They pass through
// `staged`, the warp's own 16 x (WARP_N + 8) floats of shared memory, so that each lane writes 8 neighbours, and a warp whole rows.
template <int ACTIVATION, int WARP_M, int WARP_N, class T>
__device__ void write_warp_tile(const float (&sums)[WARP_M / 16][WARP_N / 8][4], float* staged, T* c, int m, int n, int first_row,
                                int first_col, const T* bias, const T* residual, long long residual_stride) {
    const auto place = [](int row, int col) { return row * (WARP_N + 8) + (col ^ (col / 32 + row) % 2 * 4); };  // without bank conflicts
    const auto address = [](const T* pointer) { return reinterpret_cast<unsigned long long>(pointer); };
    const bool aligned = n % 8 == 0 && residual_stride % 8 == 0 && (address(c) | address(bias) | address(residual)) % 16 == 0;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < WARP_M / 16; ++i) {
        __syncwarp();
#pragma unroll
        for (int j = 0; j < WARP_N / 8; ++j) {
            const int row = lane / 4, col = 8 * j + lane % 4 * 2;
            *reinterpret_cast<float2*>(staged + place(row, col)) = make_float2(sums[i][j][0], sums[i][j][1]);
            *reinterpret_cast<float2*>(staged + place(row + 8, col)) = make_float2(sums[i][j][2], sums[i][j][3]);
        }
        __syncwarp();
        if (aligned) {
#pragma unroll
            for (int element = 8 * lane; element < 16 * WARP_N; element += 256) {
                const int row = element / WARP_N, to_row = first_row + 16 * i + row, col = element % WARP_N;
                if (to_row >= m || first_col + col >= n) continue;
                __align__(16) float values[8];
                *reinterpret_cast<float4*>(values) = *reinterpret_cast<const float4*>(staged + place(row, col));
                *reinterpret_cast<float4*>(values + 4) = *reinterpret_cast<const float4*>(staged + place(row, col + 4));
                finish<ACTIVATION>(values, bias, residual, residual_stride, to_row, first_col + col);
                store_vector(c + to_row * (long long)n + first_col + col, values);
            }
        } else {
            for (int element = lane; element < 16 * WARP_N; element += 32) {
                const int row = element / WARP_N, to_row = first_row + 16 * i + row, col = element % WARP_N;
                if (to_row >= m || first_col + col >= n) continue;
                const float sum = staged[place(row, col)];
                c[to_row * (long long)n + first_col + col] =
                    from_float<T>(finish<ACTIVATION>(sum, bias, residual, residual_stride, to_row, first_col + col));
            }
        }
    }
}

// c = activation(a b + bias) + residual. a (m, k): rows a_stride elements apart. b (k, n): if B_ROWS, rows b_stride apart, else columns.
// c (m, n), contiguous. Sums in float32. T: __half or __nv_bfloat16. All rows (columns of b) lie on multiples of WIDTH elements: 8, 4,
// 2 or 1. Launch ceil(m / BLOCK_M) * ceil(n / BLOCK_N) blocks, 32 threads for each WARP_M x WARP_N of BLOCK_M x BLOCK_N, and
// 2 * STAGES * BLOCK_K * (BLOCK_M + BLOCK_N) bytes of shared memory, or what write_warp_tile takes for all warps if that is more.
template <class T, int BLOCK_M, int BLOCK_N, int BLOCK_K, int WARP_M, int WARP_N, int STAGES, int BLOCKS, bool B_ROWS, int WIDTH,
          int ACTIVATION>
__global__ void __launch_bounds__(BLOCK_M / WARP_M * (BLOCK_N / WARP_N) * 32, BLOCKS)  // BLOCKS a multiprocessor
matmul_tensor_cores(const T* a, const T* b, T* c, int m, int n, int k, long long a_stride, long long b_stride, const T* bias,
                    const T* residual, long long residual_stride) {
    constexpr int THREADS = BLOCK_M / WARP_M * (BLOCK_N / WARP_N) * 32, STEPS = BLOCK_K / 16;
    using TileA = Tile<T, BLOCK_M, BLOCK_K, THREADS, WIDTH>;
    using TileB = Tile<T, B_ROWS ? BLOCK_K : BLOCK_N, B_ROWS ? BLOCK_N : BLOCK_K, THREADS, WIDTH>;
    constexpr int STAGE = TileA::BYTES + TileB::BYTES;
    extern __shared__ __align__(128) unsigned char stages[];

    const int2 tile = tile_of_block(2048 / BLOCK_M, (m + BLOCK_M - 1) / BLOCK_M, (n + BLOCK_N - 1) / BLOCK_N);
    const int block_row = tile.x * BLOCK_M, block_col = tile.y * BLOCK_N;
    TileA next_a(a + block_row * a_stride, a_stride, BLOCK_K);
    TileB next_b(b + block_col * (B_ROWS ? 1 : b_stride), b_stride, BLOCK_K * (B_ROWS ? b_stride : 1));

    // Asks for one part of the tiles that come next; from where they begin, `left` columns of A, and rows of B, are left.
    const auto copy = [&](int stage, int left, int part, int parts) {
        next_a.copy(stages + stage, m - block_row, left, part, parts);
        next_b.copy(stages + stage + TileA::BYTES, B_ROWS ? left : n - block_col, B_ROWS ? n - block_col : left, part, parts);
    };

    // Where the lane's row of the four matrices lies that it loads at a time: of A in the first of the warp's fragments at each step, of
    // B in each fragment at the first step (B_ROWS) or in the first at each step. The others are a constant number of bytes away.
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_row = warp % (BLOCK_M / WARP_M) * WARP_M, warp_col = warp / (BLOCK_M / WARP_M) * WARP_N;
    int place_a[STEPS], place_b[B_ROWS ? WARP_N / 16 : STEPS];
#pragma unroll
    for (int step = 0; step < STEPS; ++step) place_a[step] = TileA::place(warp_row + lane % 16, 2 * step + lane / 16);
#pragma unroll
    for (int i = 0; i < (B_ROWS ? WARP_N / 16 : STEPS); ++i) {
        place_b[i] = TileA::BYTES + (B_ROWS ? TileB::place(lane % 16, warp_col / 8 + 2 * i + lane / 16)
                                            : TileB::place(warp_col + lane / 16 * 8 + lane % 8, 2 * i + lane / 8 % 2));
    }
    unsigned fragments_a[2][WARP_M / 16][4], fragments_b[2][WARP_N / 16][4];  // of two steps; each of b's is that of 2 x 8 columns
    const auto load_fragments = [&](int stage, int step) {
        const unsigned char* from = stages + stage;
#pragma unroll
        for (int i = 0; i < WARP_M / 16; ++i) ldmatrix(fragments_a[step % 2][i], from + place_a[step] + i * 32 * BLOCK_K);
#pragma unroll
        for (int j = 0; j < WARP_N / 16; ++j) {
            if constexpr (B_ROWS) ldmatrix_trans(fragments_b[step % 2][j], from + place_b[j] + step * 32 * BLOCK_N);
            else ldmatrix(fragments_b[step % 2][j], from + place_b[step] + j * 32 * BLOCK_K);
        }
    };

#pragma unroll
    for (int i = 0; i < STAGES - 1; ++i) {
        copy(i * STAGE, k - i * BLOCK_K, 0, 1);
        cp_async_commit();
    }
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    load_fragments(0, 0);

    float sums[WARP_M / 16][WARP_N / 8][4] = {};
    int reading = 0, writing = (STAGES - 1) * STAGE;  // the bytes where stages begin
    for (int left = k; left > 0; left -= BLOCK_K) {
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            if (step < STEPS - 1) {
                load_fragments(reading, step + 1);
                copy(writing, left - (STAGES - 1) * BLOCK_K, step, STEPS - 1);  // all have read this stage before the last barrier
            } else {
                cp_async_commit();
                cp_async_wait<STAGES - 2>();  // the next tile has come: this thread's part of it, and after the barrier all of it
                __syncthreads();
                writing = reading;
                reading = reading + STAGE < STAGES * STAGE ? reading + STAGE : 0;
                load_fragments(reading, 0);
            }
#pragma unroll
            for (int i = 0; i < WARP_M / 16; ++i) {
#pragma unroll
                for (int turn = 0; turn < WARP_N / 8; ++turn) {
                    const int j = i % 2 == 0 ? turn : WARP_N / 8 - 1 - turn;  // there and back: one operand always stays
                    const unsigned (&pair)[4] = fragments_b[step % 2][j / 2];
                    const unsigned fragment_b[2] = {pair[j % 2 * 2], pair[j % 2 * 2 + 1]};
                    mma_m16n8k16<T>(sums[i][j], fragments_a[step % 2][i], fragment_b, sums[i][j]);
                }
            }
        }
    }

    cp_async_wait_all();
    __syncthreads();  // the stages are free
    float* const staged = reinterpret_cast<float*>(stages) + warp * 16 * (WARP_N + 8);
    write_warp_tile<ACTIVATION, WARP_M, WARP_N>(sums, staged, c, m, n, block_row + warp_row, block_col + warp_col, bias, residual,
                                                residual_stride);
}
