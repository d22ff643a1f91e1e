// C (m x n) = activation(A (m x k) B (k x n) + bias) + residual on Hopper's tensor cores, in bf16 or fp16, summed in float32 (sm_90a).
#include "cluster_tmp.cuh"
#include "epilogue.cuh"
#include "ldmatrix.cuh"
#include "mbarrier.cuh"
#include "named_barrier.cuh"
#include "pack.cuh"
#include "setmaxnreg.cuh"
#include "tma.cuh"
#include "wgmma.cuh"

constexpr int GROUP = 128;       // threads of a warpgroup
constexpr int ROW_BYTES = 128;   // of a tile in shared memory: what one swizzle spans
constexpr int SLAB_ROWS = 64;    // of C: what a warpgroup writes at a time, 64 rows of 128 bytes

// A stage holds ROWS x DEPTH of A and DEPTH x COLUMNS of B. Either lies with k dense, as rows of 128 bytes of k, or with m (n) dense, as
// panels of 64 columns, each DEPTH rows of 128 bytes.
template <class T, int ROWS, int COLUMNS, int STAGES, int SLABS>
struct Layout {
    static constexpr int DEPTH = ROW_BYTES / sizeof(T);
    static constexpr int A_BYTES = ROWS * ROW_BYTES, B_BYTES = COLUMNS * ROW_BYTES, STAGE_BYTES = A_BYTES + B_BYTES;
    static constexpr int SLAB_BYTES = SLAB_ROWS * ROW_BYTES;
    static constexpr int BYTES = STAGES * STAGE_BYTES + SLABS * SLAB_BYTES + 2 * STAGES * 8;
    char* base;

    __device__ explicit Layout(char* shared) : base(shared) {}
    __device__ char* a(int stage) const { return base + stage * STAGE_BYTES; }
    __device__ char* b(int stage) const { return base + stage * STAGE_BYTES + A_BYTES; }
    __device__ char* slab(int i) const { return base + STAGES * STAGE_BYTES + i * SLAB_BYTES; }
    __device__ Mbarrier* full() const { return reinterpret_cast<Mbarrier*>(base + STAGES * STAGE_BYTES + SLABS * SLAB_BYTES); }
    __device__ Mbarrier* empty() const { return full() + STAGES; }
};

// Which stage is next, and the parity of its phase.
template <int STAGES>
struct Ring {
    int stage = 0, parity = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// The order of the tiles: bands of `band` tiles of rows, in which neighbours in time share rows of A or columns of B.
struct Tile {
    int row, column;
    __device__ Tile(int index, int row_tiles, int column_tiles, int band) {
        const int in_band = band * column_tiles, first = index / in_band * band;
        const int height = min(band, row_tiles - first);
        row = first + index % in_band % height;
        column = index % in_band / height;
    }
};

template <class T>
__device__ __forceinline__ unsigned pack_pair(float low, float high);
template <>
__device__ __forceinline__ unsigned pack_pair<__nv_bfloat16>(float low, float high) { return pack_bf16x2(low, high); }
template <>
__device__ __forceinline__ unsigned pack_pair<__half>(float low, float high) { return pack_f16x2(low, high); }

#if defined(CLUSTERS) && !defined(LK_EMULATOR)
#define LK_CLUSTER __attribute__((cluster_dims(CLUSTERS, 1, 1)))
#else
#define LK_CLUSTER
#endif
template <class T, int ROWS, int COLUMNS, int CONSUMERS, int STAGES, int SLABS, int CLUSTER, bool A_COLUMNS, bool B_ROWS, bool FINISH, int ACTIVATION>
__global__ void LK_CLUSTER __launch_bounds__(GROUP * (CONSUMERS + 1), 1)
    matmul_hopper(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap c, int m, int n, int k, const T* bias, const T* residual, long long residual_stride, int band) {
    using Memory = Layout<T, ROWS, COLUMNS, STAGES, SLABS>;
    constexpr int DEPTH = Memory::DEPTH, PARTS = ROWS / CONSUMERS / 64, PANEL = ROW_BYTES / sizeof(T), SLAB_COLUMNS = COLUMNS % 64 ? 32 : 64;
    extern __shared__ __align__(1024) char dynamic[];
    const Memory memory(dynamic);
    Mbarrier *full = memory.full(), *empty = memory.empty();
    const int rank = CLUSTER > 1 ? blockIdx.x % CLUSTER : 0;
    const int steps = (k + DEPTH - 1) / DEPTH;
    const int row_tiles = (m + ROWS * CLUSTER - 1) / (ROWS * CLUSTER), column_tiles = (n + COLUMNS - 1) / COLUMNS;
    const int tiles = row_tiles * column_tiles, clusters = gridDim.x / CLUSTER;
    const int warpgroup = threadIdx.x / GROUP;

    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(&full[s], 1);
            mbarrier_init(&empty[s], CONSUMERS * CLUSTER * 4);
        }
        fence_mbarrier_init();
    }
    if (CLUSTER > 1) cluster_sync();
    else __syncthreads();

    if (warpgroup == CONSUMERS) {
        register_deallocate<40>();
        if (threadIdx.x == CONSUMERS * GROUP) {
            Ring<STAGES> ring;
            for (int index = blockIdx.x / CLUSTER; index < tiles; index += clusters) {
                const Tile tile(index, row_tiles, column_tiles, band);
                const int row = (tile.row * CLUSTER + rank) * ROWS, column = tile.column * COLUMNS;
                for (int step = 0; step < steps; ++step, ring.advance()) {
                    const int depth = step * DEPTH;
                    Mbarrier* arrived = &full[ring.stage];
                    mbarrier_wait(&empty[ring.stage], ring.parity ^ 1);
                    mbarrier_arrive_expect_tx(arrived, Memory::STAGE_BYTES);
                    if (A_COLUMNS)
                        for (int i = 0; i < ROWS / PANEL; ++i)
                            tma_load(memory.a(ring.stage) + i * DEPTH * ROW_BYTES, a, arrived, row + i * PANEL, depth);
                    else
                        tma_load(memory.a(ring.stage), a, arrived, depth, row);
                    // Each block of a cluster fetches its share of B, for all of them.
                    constexpr int SHARE = COLUMNS / CLUSTER;
                    char* share = memory.b(ring.stage) + rank * SHARE * ROW_BYTES;
                    const int first = column + rank * SHARE;
                    if (B_ROWS) {
                        for (int i = 0; i < SHARE / PANEL; ++i)
                            if (CLUSTER > 1) tma_load_multicast(share + i * DEPTH * ROW_BYTES, b, arrived, (1 << CLUSTER) - 1, first + i * PANEL, depth);
                            else tma_load(share + i * DEPTH * ROW_BYTES, b, arrived, first + i * PANEL, depth);
                    } else {
                        if (CLUSTER > 1) tma_load_multicast(share, b, arrived, (1 << CLUSTER) - 1, depth, first);
                        else tma_load(share, b, arrived, depth, first);
                    }
                }
            }
            if (CLUSTER > 1)  // the other blocks' last arrivals come to this block's barriers: stay until they are here
                for (int s = 0; s < STAGES; ++s, ring.advance()) mbarrier_wait(&empty[ring.stage], ring.parity ^ 1);
        }
        return;
    }

    register_allocate<CONSUMERS == 2 ? 232 : CONSUMERS == 1 ? 256 - 8 : 152>();
    const int thread = threadIdx.x % GROUP, lane = threadIdx.x % 32;
    float d[PARTS][COLUMNS / 2];
    Ring<STAGES> ring;
    auto release = [&](int stage) {
        __syncwarp();
        if (CLUSTER > 1) {
            if (lane < CLUSTER) mbarrier_arrive_remote(&empty[stage], lane);
        } else if (lane == 0) {
            mbarrier_arrive(&empty[stage]);
        }
    };
    for (int index = blockIdx.x / CLUSTER; index < tiles; index += clusters) {
        const Tile tile(index, row_tiles, column_tiles, band);
        const int row = (tile.row * CLUSTER + rank) * ROWS + warpgroup * PARTS * 64, column = tile.column * COLUMNS;
        int before = 0;
        for (int step = 0; step < steps; ++step, ring.advance()) {
            mbarrier_wait(&full[ring.stage], ring.parity);
            wgmma_fence();
            const char* tile_a = memory.a(ring.stage) + warpgroup * PARTS * 64 * ROW_BYTES;
            const MatrixDescriptor slab_b = matrix_descriptor(memory.b(ring.stage), DEPTH * ROW_BYTES, 8 * ROW_BYTES, 128);
#pragma unroll
            for (int i = 0; i < ROW_BYTES / 32; ++i)
#pragma unroll
                for (int part = 0; part < PARTS; ++part) {
                    const MatrixDescriptor slab_a = matrix_descriptor(tile_a + part * 64 * ROW_BYTES, DEPTH * ROW_BYTES, 8 * ROW_BYTES, 128);
                    // 32 bytes of k further: within the row, or, where k goes down, 16 rows
                    const int next_a = A_COLUMNS ? 16 * ROW_BYTES : 32, next_b = B_ROWS ? 16 * ROW_BYTES : 32;
                    wgmma<T, A_COLUMNS, B_ROWS>(d[part], slab_a + (i * next_a >> 4), slab_b + (i * next_b >> 4), step + i > 0);
                }
            wgmma_commit();
            wgmma_wait<1>();
            if (step > 0) release(before);
            before = ring.stage;
        }
#pragma unroll
        for (int part = 0; part < PARTS; ++part) wgmma_wait<0>(d[part]);
        release(before);

        // C leaves as slabs of 64 rows, through shared memory and the copy engine, while the next tile is multiplied.
        const int warp_row = thread / 32 * 16;
#pragma unroll
        for (int part = 0; part < PARTS; ++part)
#pragma unroll
            for (int slab = 0; slab < COLUMNS / SLAB_COLUMNS; ++slab) {
                constexpr int EACH = SLABS / CONSUMERS;
                char* staged = memory.slab(warpgroup * EACH + (part * (COLUMNS / SLAB_COLUMNS) + slab) % EACH);
                const int slab_row = row + part * 64, slab_column = column + slab * SLAB_COLUMNS;
                if (thread == 0) tma_wait_read<EACH - 1>();
                named_barrier_sync(1 + warpgroup, GROUP);
#pragma unroll
                for (int pair = 0; pair < SLAB_COLUMNS / 16; ++pair) {  // of blocks of 8 columns
                    unsigned packed[4];
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const int at = (slab * SLAB_COLUMNS + 16 * pair) / 2 + 2 * i;
                        float sums[2] = {d[part][at], d[part][at + 1]};
                        const int r = slab_row + warp_row + lane / 4 + (i & 1) * 8, col = slab_column + 16 * pair + (i >> 1) * 8 + lane % 4 * 2;
                        if (FINISH && r < m && col < n) finish<ACTIVATION>(sums, bias, residual, residual_stride, r, col);
                        packed[i] = pack_pair<T>(sums[0], sums[1]);
                    }
                    const int staged_row = warp_row + lane % 16, piece = 2 * pair + lane / 16;
                    const int swizzled = SLAB_COLUMNS == 64 ? piece ^ staged_row % 8 : piece ^ staged_row / 2 % 4;
                    stmatrix(staged + staged_row * (2 * SLAB_COLUMNS) + (swizzled << 4), packed);
                }
                fence_proxy_async_shared();
                named_barrier_sync(1 + warpgroup, GROUP);
                if (thread == 0) {
                    tma_store(c, staged, slab_column, slab_row);
                    tma_commit();
                }
            }
    }
    if (thread == 0) tma_wait_read<0>();
}
