// Matmul, v5: pipelined. The register tiles of v4, loaded four numbers at a time and while the block multiplies.
//   Idea      Shared memory holds two slices of the tiles: one is multiplied while the next is on its way from global memory, in
//             registers, to be stored when the multiplying is done; so there is one barrier a slice. All loads are of 4 numbers. For
//             shared memory to give 4 neighbours in a column of a, a's slice lies transposed.
//   Predicts  4 loads of 16 bytes from shared memory for 64 FMAs, half of what shared memory can give. 90% of the instructions are FMAs,
//             not 57% (v4): bound by FP32 arithmetic, 137 GFLOP at 4096^3, 2.7 ms at the measured ceiling of 50.9 TFLOP/s.
//   Small     Tiles of 128 x 128 leave most SMs idle at 1024^2. Smaller tiles have too few warps to hide anything, so teams of warps
//             share the depth of a slice, each with sums of its own, which are added up at the end.
//   Measured  data/measured/h200/matmul.csv, float32: 45.5 TFLOP/s at 4096^3, 0.97 of cuBLAS (47.1), 46.0 at 8192^3 (0.90), 19.5 at 512^3 (1.06).
//             While it was made: 41.3 with tiles of 128 x 256, of which more instructions are FMAs, but only one block fits a multiprocessor.
//   Wastes    The tensor cores. The last wave: 4096^2 is 1024 tiles for 264 places (2 blocks on each of 132 SMs), 3.88 waves that take
//             4. And with one row, as in decoding, 31 of 32 rows of the smallest tile.
#include "epilogue.cuh"

constexpr int GROUP = 16;  // rows of tiles that are walked through together

// A strip of a matrix on its way to shared memory, DEPTH steps of k at a time: LINES rows of a, or columns of b, of which there are
// `lines`. ALONG_K: each line is dense (a; b by columns), and comes out transposed; else neighbouring lines are neighbours in memory
// (b by rows). `stride` is between lines, or between steps of k. Vectors have 4 elements; WIDTH is 4 if they all lie on multiples of
// their size, else 1. Lines past the end are copies of the last one or zeros: their results are not written.
template <class T, int LINES, int DEPTH, bool ALONG_K, int THREADS, int WIDTH>
struct Strip {
    static constexpr int COUNT = LINES * DEPTH / 4 / THREADS;  // vectors a thread
    static_assert(COUNT * 4 * THREADS == LINES * DEPTH && LINES % 16 == 0, "each thread brings the same number of vectors");

    const T* source[COUNT];
    int lines_left;                          // from the block's first line on
    Vector<unsigned, sizeof(T)> words[COUNT];  // not looked at before they are stored: so nothing waits for them

    // Along k, neighbouring threads take 16 lines and then the next vector: so they write 32 banks.
    __device__ static int line(int i) {
        const int index = threadIdx.x + i * THREADS;
        return ALONG_K ? index % 16 + index / (4 * DEPTH) * 16 : index % (LINES / 4) * 4;
    }
    __device__ static int depth(int i) {
        const int index = threadIdx.x + i * THREADS;
        return ALONG_K ? index / 16 % (DEPTH / 4) * 4 : index / (LINES / 4);
    }

    __device__ Strip(const T* matrix, long long stride, int first_line, int lines) : lines_left(lines - first_line) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const long long nearest = first_line + min(line(i), lines_left - (ALONG_K ? 1 : WIDTH));
            source[i] = matrix + (ALONG_K ? nearest * stride + depth(i) : depth(i) * stride + nearest);
        }
    }

    // Asks for a whole slice.
    __device__ void load() {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) read(i, DEPTH);
    }

    // Asks for the first `count` steps of k of a slice, and for zeros instead of the others.
    __device__ void load(int count) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            words[i] = {};
            if (depth(i) < count) read(i, count);
        }
    }

    __device__ void read(int i, int count) {
        if (WIDTH == 4) {
            words[i] = *reinterpret_cast<const Vector<unsigned, sizeof(T)>*>(source[i]);
        } else {
            const int inside = ALONG_K ? count - depth(i) : lines_left - line(i);
#pragma unroll
            for (int j = 0; j < 4; ++j) reinterpret_cast<T*>(&words[i])[j] = inside > j ? source[i][j] : from_float<T>(0.0f);
        }
    }

    __device__ void advance(long long elements) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) source[i] += elements;
    }

    __device__ void store(float (*slice)[LINES + 4]) const {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            float values[4];
            load_vector(reinterpret_cast<const T*>(&words[i]), values);
            if (ALONG_K) {
#pragma unroll
                for (int j = 0; j < 4; ++j) slice[depth(i) + j][line(i)] = values[j];
            } else {
                store_vector(&slice[depth(i)][line(i)], values);
            }
        }
    }
};

template <int TILE_M, int TILE_N, int DEPTH>
struct Shared {
    float a[2][DEPTH][TILE_M + 4];
    float b[2][DEPTH][TILE_N + 4];
};

// Where a thread's elements lie in the tile: a warp is 4 x 8 threads, and owns ROWS / 4 bands of 16 rows, COLS / 4 of 32 columns. The
// warps of a team cover the tile; thread t of one team owns what thread t of another does.
template <int TILE_M, int TILE_N, int ROWS, int COLS>
struct Patch {
    static constexpr int TEAM = TILE_M / ROWS * TILE_N / COLS;  // threads
    static constexpr int WARPS_ACROSS = TILE_N / (8 * COLS);
    __device__ static int thread() { return threadIdx.x % TEAM; }
    // In each half of a warp, two neighbours read the same 4 numbers of b, and every second one the same of a: 128 bytes at most.
    __device__ static int y() { return threadIdx.x % 2 + threadIdx.x % 32 / 16 * 2; }
    __device__ static int x() { return threadIdx.x % 16 / 2; }
    __device__ static int row(int i) { return thread() / 32 / WARPS_ACROSS * 4 * ROWS + i / 4 * 16 + y() * 4 + i % 4; }
    __device__ static int col(int j) { return thread() / 32 % WARPS_ACROSS * 8 * COLS + j / 4 * 32 + x() * 4 + j % 4; }
};

// sum += the product of this team's share of a slice of either tile: every TEAMS-th step of k.
template <class Patch, int TEAMS, int ROWS, int COLS, int DEPTH, int A_STRIDE, int B_STRIDE>
__device__ __forceinline__ void multiply(float (&sum)[ROWS][COLS], const float (&a)[DEPTH][A_STRIDE], const float (&b)[DEPTH][B_STRIDE]) {
    const int team = threadIdx.x / Patch::TEAM;
#pragma unroll
    for (int step = 0; step < DEPTH / TEAMS; ++step) {
        const int d = TEAMS == 1 ? step : step * TEAMS + team;
        float left[ROWS / 4][4], right[COLS / 4][4];
#pragma unroll
        for (int i = 0; i < ROWS / 4; ++i) load_vector(&a[d][Patch::row(4 * i)], left[i]);
#pragma unroll
        for (int j = 0; j < COLS / 4; ++j) load_vector(&b[d][Patch::col(4 * j)], right[j]);
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
#pragma unroll
            for (int j = 0; j < COLS; ++j) sum[i][j] += left[i / 4][i % 4] * right[j / 4][j % 4];
        }
    }
}

// The first team's sum += those of the others, one team after the other: the same order each time. `room` holds a tile.
template <class Patch, int TEAMS, int ROWS, int COLS>
__device__ __forceinline__ void add_up(float (&sum)[ROWS][COLS], float (*room)[4]) {
    const int own_team = threadIdx.x / Patch::TEAM;
    for (int team = 1; team < TEAMS; ++team) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < ROWS * COLS / 4; ++i) {
            float(&values)[4] = reinterpret_cast<float(&)[4]>(sum[i / (COLS / 4)][i % (COLS / 4) * 4]);
            if (own_team == team) store_vector(room[i * Patch::TEAM + Patch::thread()], values);
        }
        __syncthreads();
        if (own_team > 0) continue;
#pragma unroll
        for (int i = 0; i < ROWS * COLS / 4; ++i) {
            float values[4];
            load_vector(room[i * Patch::TEAM + Patch::thread()], values);
#pragma unroll
            for (int j = 0; j < 4; ++j) sum[i / (COLS / 4)][i % (COLS / 4) * 4 + j] += values[j];
        }
    }
}

// c = activation(a b + bias) + residual; c (m, n) is contiguous. b_stride is between b's rows (B_BY_ROWS) or between its columns.
// Launch TEAMS * TILE_M / ROWS * TILE_N / COLS threads, ceil(m / TILE_M) * ceil(n / TILE_N) blocks, and sizeof(Shared) bytes of shared memory.
// WIDTH 4: every row of a, c and the residual, every row or column of b, and the bias lie on multiples of 4 elements; n and the depth
// of what is dense along k are such multiples. Else 1.
template <class T, int ACTIVATION, int TILE_M, int TILE_N, int ROWS, int COLS, int DEPTH, int TEAMS, bool B_BY_ROWS, int WIDTH>
__global__ void __launch_bounds__(TEAMS* TILE_M / ROWS * TILE_N / COLS, ROWS* COLS > 64 ? 1 : 512 * ROWS * COLS / TILE_M / TILE_N / TEAMS)
matmul_pipelined(const T* a, const T* b, T* c, int m, int n, int k, long long a_stride, long long b_stride, const T* bias,
                 const T* residual, long long residual_stride) {
    using Patch = Patch<TILE_M, TILE_N, ROWS, COLS>;
    constexpr int THREADS = TEAMS * Patch::TEAM;
    extern __shared__ __align__(16) unsigned char shared_bytes[];
    auto& shared = *reinterpret_cast<Shared<TILE_M, TILE_N, DEPTH>*>(shared_bytes);

    // Blocks that run at a time share their strips of a and b through L2: go down GROUP tiles, then one to the right.
    const int tiles_down = (m + TILE_M - 1) / TILE_M, tiles_across = (n + TILE_N - 1) / TILE_N;
    const int group = blockIdx.x / (GROUP * tiles_across), within = blockIdx.x % (GROUP * tiles_across);
    const int height = min(GROUP, tiles_down - group * GROUP);
    const int first_row = (group * GROUP + within % height) * TILE_M, first_col = within / height * TILE_N;

    Strip<T, TILE_M, DEPTH, true, THREADS, WIDTH> next_a(a, a_stride, first_row, m);
    Strip<T, TILE_N, DEPTH, !B_BY_ROWS, THREADS, WIDTH> next_b(b, b_stride, first_col, n);
    float sum[ROWS][COLS] = {};

    // The odd slice of k comes first: then all that the loop asks for is there.
    const int slices = (k + DEPTH - 1) / DEPTH, odd = k - (slices - 1) * DEPTH;
    const long long b_step = B_BY_ROWS ? b_stride : 1;
    if (slices > 0) {
        next_a.load(odd);
        next_b.load(odd);
        next_a.advance(odd);
        next_b.advance(odd * b_step);
        next_a.store(shared.a[0]);
        next_b.store(shared.b[0]);
        __syncthreads();
    }
#pragma unroll(WIDTH == 4 && sizeof(T) == 4 ? 2 : 1)  // by 2, the places in either slice are constants
    for (int slice = 0; slice < slices; ++slice) {
        const bool more = slice + 1 < slices;
        if (more) {
            next_a.load();
            next_b.load();
            next_a.advance(DEPTH);
            next_b.advance(DEPTH * b_step);
        }
        multiply<Patch, TEAMS>(sum, shared.a[slice % 2], shared.b[slice % 2]);
        if (more) {
            next_a.store(shared.a[(slice + 1) % 2]);
            next_b.store(shared.b[(slice + 1) % 2]);
            __syncthreads();
        }
    }

    if (TEAMS > 1) {
        add_up<Patch, TEAMS>(sum, reinterpret_cast<float(*)[4]>(shared_bytes));
        if (threadIdx.x >= Patch::TEAM) return;
    }
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        const int row = first_row + Patch::row(i);
        if (row >= m) continue;
#pragma unroll
        for (int j = 0; j < COLS; j += 4) {
            const int col = first_col + Patch::col(j);
            T* target = c + row * (long long)n + col;
            if (WIDTH == 4) {
                float values[4] = {sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3]};
                if (col >= n) continue;
                finish<ACTIVATION>(values, bias, residual, residual_stride, row, col);
                store_vector(target, values);
            } else {
#pragma unroll
                for (int u = 0; u < 4; ++u) {
                    if (col + u >= n) continue;
                    target[u] = from_float<T>(finish<ACTIVATION>(sum[i][j + u], bias, residual, residual_stride, row, col + u));
                }
            }
        }
    }
}
