// Matmul, v6: tensor cores. Each warp multiplies with mma.sync what ldmatrix brings it from shared memory, which cp.async keeps filled
// several tiles ahead. Runs on every GPU since Ampere (sm_80).
//   Idea      One mma.sync is 2048 multiplications for one instruction of a warp; an FMA is 32. What is left to do is to feed it: a warp
//             owns 64 x 64 of the result, so that 8 ldmatrix serve 32 mma; the fragments of the next 16 columns are loaded while these
//             are multiplied; global memory is asked for a tile STAGES - 1 tiles before it is needed; one barrier a tile.
//   Predicts  Bound by tensor cores, if shared memory keeps up: each 16 columns of k, a block of 128 x 256 reads 32 KiB and writes 12
//             KiB of it, at 128 bytes a cycle 352 cycles, for 256 mma, 64 in each quarter of a multiprocessor. An A100 takes 512
//             cycles for them. A Hopper GPU, whose mma.sync is slower than its wgmma but not slower than that, has less to spare.
//   Wastes    On Hopper, the tensor cores that only wgmma reaches, and registers and instructions for addresses that TMA would compute.
//             A block computes nothing while it writes its result, unless another one shares its multiprocessor.
//
// Shared memory is swizzled: vectors of 16 bytes change places within their row so that neither eight rows of a column (ldmatrix) nor
// eight vectors of a row (cp.async) meet in a bank.
#include "cp_async.cuh"
#include "epilogue.cuh"
#include "ldmatrix.cuh"
#include "mma.cuh"
#include "vector.cuh"

// A tile of ROWS x COLS elements in shared memory, in vectors of 8. WIDTH: how many elements of a row a copy may move at a time.
template <class T, int ROWS, int COLS, int THREADS, int WIDTH>
struct Tile {
    static constexpr int VECTORS = COLS / 8;          // in a row
    static constexpr int STEP = THREADS / VECTORS;    // rows that all threads fill at a time
    static constexpr int COUNT = (ROWS + STEP - 1) / STEP;
    static_assert(THREADS % VECTORS == 0 && (ROWS < STEP || ROWS % STEP == 0), "each thread fills one column of vectors");

    // Where vector `vector` of row `row` lies. Eight neighbouring rows, or vectors, lie in all 32 banks.
    __device__ static int place(int row, int vector) {
        return row * COLS + (vector ^ (VECTORS >= 8 ? row % 8 : row / 2 % 4)) * 8;
    }
    __device__ static int row() { return threadIdx.x / VECTORS; }
    __device__ static int col() { return threadIdx.x % VECTORS * 8; }

    // Start to copy part `part` of `parts` of this thread's vectors. `source` is the thread's first element in a matrix that has so many
    // rows and columns from the tile's corner on; zeros come in place of what lies outside.
    __device__ __forceinline__ static void copy(T* tile, const T* source, long long stride, int rows, int cols, int part, int parts) {
        const int bytes = min(max(cols - col(), 0), 8) * 2;
#pragma unroll
        for (int i = 0; i < COUNT; ++i, source += STEP * stride) {
            const int to_row = row() + i * STEP;
            if (i < COUNT * part / parts || i >= COUNT * (part + 1) / parts || (ROWS < STEP && to_row >= ROWS)) continue;
            T* target = tile + (STEP % 8 == 0 ? place(row(), col() / 8) + i * STEP * COLS : place(to_row, col() / 8));
            const int valid = to_row < rows ? bytes : 0;
            if constexpr (WIDTH == 8) {
                cp_async_l2(target, source, valid);
            } else if constexpr (WIDTH > 1) {
#pragma unroll
                for (int u = 0; u < 8; u += WIDTH) cp_async<2 * WIDTH>(target + u, source + u, min(max(valid - 2 * u, 0), 2 * WIDTH));
            } else {
                Vector<unsigned short, 8> vector = {};
#pragma unroll
                for (int u = 0; u < 8; ++u) {
                    if (2 * u < valid) vector.element[u] = reinterpret_cast<const unsigned short*>(source)[u];
                }
                *reinterpret_cast<Vector<unsigned short, 8>*>(target) = vector;
            }
        }
    }
};

// Which tile of the result a block computes. Blocks that run at the same time should share rows of A and columns of B in L2: so they go
// down GROUP tiles, then one to the right, and so on.
template <int GROUP>
__device__ int2 tile_of_block(int tiles_m, int tiles_n) {
    const int group = blockIdx.x / (GROUP * tiles_n), inside = blockIdx.x % (GROUP * tiles_n);
    const int height = min(GROUP, tiles_m - group * GROUP);
    return make_int2(group * GROUP + inside % height, inside / height);
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
                float values[8];
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
template <class T, int BLOCK_M, int BLOCK_N, int BLOCK_K, int WARP_M, int WARP_N, int STAGES, int BLOCKS, bool B_ROWS, int WIDTH, int ACTIVATION>
__global__ void __launch_bounds__(BLOCK_M / WARP_M * (BLOCK_N / WARP_N) * 32, BLOCKS)  // BLOCKS a multiprocessor
matmul_tensor_cores(const T* a, const T* b, T* c, int m, int n, int k, long long a_stride, long long b_stride, const T* bias,
                    const T* residual, long long residual_stride) {
    constexpr int THREADS = BLOCK_M / WARP_M * (BLOCK_N / WARP_N) * 32, STEPS = BLOCK_K / 16;
    using TileA = Tile<T, BLOCK_M, BLOCK_K, THREADS, WIDTH>;
    using TileB = Tile<T, B_ROWS ? BLOCK_K : BLOCK_N, B_ROWS ? BLOCK_N : BLOCK_K, THREADS, WIDTH>;
    constexpr int SIZE_A = BLOCK_M * BLOCK_K, STAGE = SIZE_A + BLOCK_K * BLOCK_N;

    extern __shared__ __align__(128) unsigned char shared_bytes[];
    T* const stages = reinterpret_cast<T*>(shared_bytes);

    const int2 tile = tile_of_block<(BLOCK_M < 2048 ? 2048 / BLOCK_M : 1)>((m + BLOCK_M - 1) / BLOCK_M, (n + BLOCK_N - 1) / BLOCK_N);
    const int block_row = tile.x * BLOCK_M, block_col = tile.y * BLOCK_N;
    a += (block_row + TileA::row()) * a_stride + TileA::col();
    b += B_ROWS ? TileB::row() * b_stride + block_col + TileB::col() : (block_col + TileB::row()) * b_stride + TileB::col();

    // Asks for one part of the tiles of A and B that come next, which begin `left` columns before the end of k.
    const auto copy = [&](int stage, int left, int part, int parts) {
        T* const tile_a = stages + stage * STAGE;
        TileA::copy(tile_a, a, a_stride, m - block_row, left, part, parts);
        TileB::copy(tile_a + SIZE_A, b, b_stride, B_ROWS ? left : n - block_col, B_ROWS ? n - block_col : left, part, parts);
    };
    const auto advance = [&] {
        a += BLOCK_K;
        b += B_ROWS ? BLOCK_K * b_stride : BLOCK_K;
    };

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_row = warp % (BLOCK_M / WARP_M) * WARP_M, warp_col = warp / (BLOCK_M / WARP_M) * WARP_N;
    unsigned fragments_a[2][WARP_M / 16][4], fragments_b[2][WARP_N / 16][4];  // of two steps; each of b's is that of 2 x 8 columns
    const auto load_fragments = [&](const T* tile_a, int step) {
        const T* const tile_b = tile_a + SIZE_A;
#pragma unroll
        for (int i = 0; i < WARP_M / 16; ++i) {
            ldmatrix(fragments_a[step % 2][i], tile_a + TileA::place(warp_row + lane % 16, 2 * step + lane / 16) + 16 * i * BLOCK_K);
        }
#pragma unroll
        for (int j = 0; j < WARP_N / 16; ++j) {
            if constexpr (B_ROWS) {
                ldmatrix_trans(fragments_b[step % 2][j],
                               tile_b + TileB::place(lane % 16, warp_col / 8 + 2 * j + lane / 16) + 16 * step * BLOCK_N);
            } else {
                ldmatrix(fragments_b[step % 2][j],
                         tile_b + TileB::place(warp_col + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2) + 16 * j * BLOCK_K);
            }
        }
    };

    const int tiles = (k + BLOCK_K - 1) / BLOCK_K;
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        copy(stage, k - stage * BLOCK_K, 0, 1);
        advance();
        cp_async_commit();
    }
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    load_fragments(stages, 0);

    float sums[WARP_M / 16][WARP_N / 8][4] = {};
    int reading = 0, writing = STAGES - 1;  // stages
    for (int t = 0; t < tiles; ++t) {
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            if (step < STEPS - 1) {
                load_fragments(stages + reading * STAGE, step + 1);
                // What was in this stage was read before the last barrier.
                copy(writing, k - (t + STAGES - 1) * BLOCK_K, step, STEPS - 1);
            } else {
                advance();
                cp_async_commit();
                cp_async_wait<STAGES - 2>();  // the next tile has come: this thread's part of it, and after the barrier all of it
                __syncthreads();
                writing = reading;
                reading = reading + 1 < STAGES ? reading + 1 : 0;
                load_fragments(stages + reading * STAGE, 0);
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
    float* const staged = reinterpret_cast<float*>(shared_bytes) + warp * 16 * (WARP_N + 8);
    write_warp_tile<ACTIVATION, WARP_M, WARP_N>(sums, staged, c, m, n, block_row + warp_row, block_col + warp_col, bias, residual,
                                                residual_stride);
}
