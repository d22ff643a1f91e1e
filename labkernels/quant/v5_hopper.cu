// Quantised matmul, v5, for many rows of x: Hopper. y = x W^T for 64 to thousands of rows of x, W in 4 or 8 bits (sm_90a).
//   Idea      As v5_few_rows.cu: W becomes wgmma's A operand in registers. But now multiplication takes longer than W's way from memory,
//             so blocks stay, and tiles are as large as registers allow, 128 rows of W by 256 of x: each number is unpacked once for 256
//             multiplications, while the tensor cores work on what was unpacked before, or for the other warpgroup.
//             Tiles are dealt out whole as long as there is one for every block. What is left, at a hundred rows of x everything, is cut
//             along k into equal parts, one a block (stream_k.cuh): as many as leave most parts beginning where a tile does, for each
//             further part of a tile passes through L2. Or two blocks of a cluster share each tile's k, where such halves come out even.
//   Predicts  Unpacking takes 4 instructions for two numbers, 64 of a warp for each 512 clocks of its tensor core: an eighth of its time,
//             and the tensor cores do not wait for it. So as fast as v7 of matmul, less what 3/4 of W's bytes saved give back.
//   Measured  data/measured/h200/quant_matmul.csv: int4, 256 rows of x: 11008 x 4096 109 -> 36.7 us (cuBLAS with a bf16 weight 34.4), there
//             NF4 38.6, int8 39.0; 4096 x 11008 106 -> 36.4 (40.3); 28672 x 8192 504 -> 160 (175). 11008 x 4096, 4096 rows: 1572 -> 461 (484).
//             Not recorded, tried while it was made, 256 rows: 11008 x 4096, 86 tiles for 132 multiprocessors: whole 41.6; in 132 parts, some
//             tiles in three, 40.2; in 129, each tile in two, 37.4. 4096 x 11008, 32 tiles: whole 102; in 128 parts 40.6; 128 x 128, two blocks
//             a tile, 37.7.
//             Slower, and gone: warpgroups that take turns at the tensor cores (no difference); W unpacked into shared memory, where
//             wgmma reads it (2 to 18%); 32 of k unpacked between two wgmma, not 64 between four and four (no difference with 256 rows of
//             x, 9% with 128); tiles of 256 x 88, of which 129 come out even (47.1, of which unpacking and loading x are 7.7: the wgmma
//             themselves are slow); clusters of four (twice the time: not all 32 of them fit at once).
//   Wastes    Each 128 rows of W are unpacked again for every 256 rows of x. Parts of tiles, 128 KB each, pass through L2 while the
//             tensor cores rest: at 11008 x 4096 in int4 it takes 7% longer than cuBLAS with 256 and 512 rows, 3% with 1024.
#include "cluster.cuh"
#include "many_rows.cuh"
#include "setmaxnreg.cuh"
#include "wgmma.cuh"

// d = the products of the steps of `item`, W turned into A fragments in registers, of which there are two sets, of 64 of k each: one is
// filled while the tensor cores read the other. All stages are given back.
template <class T, int DEPTH, class Memory, class Unpacker, int COUNT, int STAGES>
__device__ __forceinline__ void multiply(float (&d)[COUNT], const Memory& memory, const Unpacker& unpacker, const Item& item,
                                         Ring<STAGES>& ring) {
    const int row = threadIdx.x / GROUP * 64 + threadIdx.x % GROUP / 32 * 16 + threadIdx.x % 32 / 4;
    unsigned a[2][4][4];
    int before = -1;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) d[i] = 0.0f;
    for (int step = item.first; step < item.last; ++step) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int in_stage = DEPTH == STEP ? half : 0;
            if (in_stage == 0) mbarrier_wait(&memory.full()[ring.stage], ring.parity);
            unpacker.unpack(a[half], memory.w(ring.stage), memory.scales(ring.stage), in_stage, row);
            const MatrixDescriptor tokens = matrix_descriptor(memory.x(ring.stage) + in_stage * Memory::PANEL_BYTES, 0, 8 * ROW_BYTES, 128);
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < 4; ++i) wgmma<T>(d, a[half][i], tokens + 2 * i, true);
            wgmma_commit();
            wgmma_wait<1>();
            if (in_stage == 0) {
                release_stage(memory.empty(), before);
                before = ring.stage;
            }
            if (DEPTH < STEP || half == 1) ring.advance();
        }
    }
    wgmma_wait<0>(d);
    release_stage(memory.empty(), before);
}

// x, y, w and scales: tensor maps of (m, k), (m, n), W as stored, (n, bytes of a row), and (groups, n). row_scales: of 8-bit numbers, one
// a row of W. Tiles are taken in bands of `band` rows of tiles; those that are not `whole` are cut in at most `parts` parts. workspace:
// ROWS * TOKENS floats for each block, twice as many where tiles are cut; counters: zeros, one for each tile that is cut, and zeros
// afterwards. Blocks in clusters of SPLITS, which share a tile's k: then tiles are whole, and there is one for each cluster.
template <class T, Scheme SCHEME, int GROUP_SIZE, int CONSUMERS, int TOKENS, int DEPTH, int STAGES, int SLABS, int COPIES, int SPLITS>
__global__ void __launch_bounds__(GROUP * (CONSUMERS + 1), 1)
    quant_matmul_hopper(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap scales,
                        const __grid_constant__ TensorMap y, const float* row_scales, const float* codebook, int m, int n, int k, int whole,
                        int parts, int band, float4* workspace, int* counters) {
    constexpr int ROWS = 64 * CONSUMERS, COUNT = TOKENS / 2, THREADS = CONSUMERS * GROUP, TILE = ROWS * TOKENS / 4;
    constexpr int OWN = SLABS / CONSUMERS;  // slabs of a warpgroup
    constexpr bool FOUR_BIT = GROUP_SIZE > 0;
    using Shared = Memory<SCHEME, GROUP_SIZE, ROWS, TOKENS, DEPTH, STAGES, COPIES>;
    extern __shared__ __align__(1024) char dynamic[];
    __shared__ int arrived_before;
    const Shared memory(dynamic + SLABS * SLAB_BYTES);  // slabs come first, on multiples of 1024 bytes
    Mbarrier *full = memory.full(), *empty = memory.empty();
    const int row_tiles = (n + ROWS - 1) / ROWS, token_tiles = (m + TOKENS - 1) / TOKENS, steps = (k + STEP - 1) / STEP;
    const int warpgroup = threadIdx.x / GROUP, thread = threadIdx.x % GROUP, lane = threadIdx.x % 32;

    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(&full[s], 1);
            mbarrier_init(&empty[s], CONSUMERS * 4);
        }
        fence_mbarrier_init();
    }
    __syncthreads();

    Schedule schedule(row_tiles * token_tiles, whole, steps, parts, SPLITS);
    const int block = blockIdx.x / SPLITS, rank = SPLITS > 1 ? cluster_rank() : 0;
    const auto next = [&](Item& item) {
        if (!schedule.item(item)) return false;
        if (SPLITS > 1) item.first = steps * rank / SPLITS, item.last = steps * (rank + 1) / SPLITS;
        return true;
    };
    Ring<STAGES> ring;
    Item item;
    if (warpgroup == CONSUMERS) {
        register_deallocate<40>();
        bool is_first = true;
        while (thread == 0 && next(item)) {
            const Tile tile(item.tile, row_tiles, token_tiles, band);
            const int row = tile.row * ROWS, token = tile.column * TOKENS, end = item.last * STEP;
            int depth = item.first * STEP;
            if (is_first) {  // W does not come from the kernel before; x may, and what consumers write comes after x
                is_first = false;
                const int ready = min(STAGES * DEPTH, end - depth);
                for (int s = 0; s * DEPTH < ready; ++s) memory.load_w(s, w, scales, depth + s * DEPTH, row);
                grid_dependency_wait();
                grid_dependency_launch();
                const int loaded = depth + ready;
                for (; depth < loaded; depth += DEPTH, ring.advance()) memory.load_x(ring.stage, x, depth, token);
            }
            for (; depth < end; depth += DEPTH, ring.advance()) {
                mbarrier_wait(&empty[ring.stage], ring.parity ^ 1);
                memory.load_w(ring.stage, w, scales, depth, row);
                memory.load_x(ring.stage, x, depth, token);
            }
        }
        if (SPLITS > 1) cluster_sync();
        return;
    }

    register_allocate<CONSUMERS == 3 ? 152 : 232>();
    if (SCHEME == Scheme::kCodebook) {
        make_table<T, COPIES>(memory.table(), codebook, threadIdx.x, THREADS);
        named_barrier_sync(1 + CONSUMERS, THREADS);
    }
    const Unpacker<T, SCHEME, GROUP_SIZE, ROWS, DEPTH, COPIES> unpacker(memory.table());
    char* const slabs = dynamic + warpgroup * OWN * SLAB_BYTES;
    float d[COUNT];
    int slab = 0;
    while (next(item)) {
        multiply<T, DEPTH>(d, memory, unpacker, item, ring);

        float4* const own = workspace + blockIdx.x * TILE + threadIdx.x;
        if constexpr (SPLITS > 1) {
            leave_others<SPLITS, THREADS>(d, own, rank);
            cluster_sync();
        } else if (item.last - item.first < steps) {
            if (!add_up_parts<THREADS>(d, schedule, block, item, workspace, counters, arrived_before, 1 + CONSUMERS)) continue;
        }
        const Tile tile(item.tile, row_tiles, token_tiles, band);
        const int row = tile.row * ROWS + warpgroup * 64, own_row = row + thread / 32 * 16 + lane / 4, token = tile.column * TOKENS;
        float factors[2];
        for (int r = 0; r < 2; ++r) factors[r] = !FOUR_BIT && own_row + 8 * r < n ? row_scales[own_row + 8 * r] : 1.0f;
        if constexpr (SPLITS > 1) {
            constexpr int SHARE = TOKENS / SPLITS;
#pragma unroll
            for (int first = 0; first < SHARE; first += SLAB_TOKENS) {
                float sums[SLAB_TOKENS / 2];
                add_up<SPLITS, TILE, THREADS>(sums, d, own - rank * TILE, rank, first / 8);
                store_part<T, !FOUR_BIT, OWN>(y, slabs, slab, sums, row, token + rank * SHARE + first, factors);
            }
        } else {
            store_part<T, !FOUR_BIT, OWN>(y, slabs, slab, d, row, token, factors);
        }
    }
    if (thread == 0) tma_wait_read<0>();
}
