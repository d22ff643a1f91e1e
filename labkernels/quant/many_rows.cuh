// What v5, v7 and v8 share for many rows of x: blocks that stay, a producer of tiles, and what becomes of the sums. How W's numbers come to the tensor
// cores is the Multiplier's:
//   SHARED_BYTES                   of shared memory, on a multiple of 1024 bytes
//   multiply(d, item, ring)        d = the sums of this item; all stages that it has read are given back
//   end()                          after the last item
#pragma once
#include "hopper_weights.cuh"
#include "setmaxnreg.cuh"
#include "stream_k.cuh"
#include "wgmma.cuh"

// Columns of the sums are rows of y: stmatrix writes them transposed, up to 32 rows of y at a time, and the copy engine takes them away.
// `slabs` are the warpgroup's own, OWN of SLAB_TOKENS rows; `slab` counts those written so far. The sums are those of 64 rows of W, from `row`
// on, and `factors` multiplies them, where SCALED.
template <class T, bool SCALED, int SLAB_TOKENS, int OWN, int COUNT>
__device__ __forceinline__ void store_part(const TensorMap& y, char* slabs, int& slab, const float (&sums)[COUNT], int row, int token,
                                           const float (&factors)[2]) {
    const int thread = threadIdx.x % GROUP, lane = threadIdx.x % 32, warpgroup = threadIdx.x / GROUP;
#pragma unroll
    for (int first = 0; first < 2 * COUNT; first += SLAB_TOKENS, ++slab) {
        char* const staged = slabs + slab % OWN * (SLAB_TOKENS * ROW_BYTES);
        if (thread == 0) tma_wait_read<OWN - 1>();
        named_barrier_sync(1 + warpgroup, GROUP);
#pragma unroll
        for (int block = 0; block < SLAB_TOKENS / 8; block += 2) {
            unsigned packed[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int at = (first / 8 + block) * 4 + 2 * i;
                const float factor = SCALED ? factors[i % 2] : 1.0f;
                packed[i] = pack_pair<T>(sums[at] * factor, sums[at + 1] * factor);
            }
            const int at = 8 * (block + lane / 16) + lane % 8, piece = thread / 32 * 2 + lane / 8 % 2;
            stmatrix_trans(staged + at * ROW_BYTES + ((piece ^ at % 8) << 4), packed);
        }
        fence_proxy_async_shared();
        named_barrier_sync(1 + warpgroup, GROUP);
        if (thread == 0) {
            tma_store(y, staged, row, token + first);
            tma_commit();
        }
    }
}

// A consumer warp gives a stage back that all its lanes have read; none if it is negative.
__device__ __forceinline__ void release_stage(Mbarrier* empty, int stage) {
    __syncwarp();
    if (threadIdx.x % 32 == 0 && stage >= 0) mbarrier_arrive(&empty[stage]);
}

// x, y, w and scales: tensor maps of (m, k), (m, n), W as stored, (n, bytes of a row), and (groups, n). row_scales: of 8-bit numbers, one a
// row of W. workspace: 2 * gridDim.x * ROWS * TOKENS floats, and counters: zeros, one for each tile that is not whole; they are zeros again
// afterwards. Tiles are taken in bands of `band` rows of tiles.
template <class Multiplier, class T, Scheme SCHEME, int GROUP_SIZE, int CONSUMERS, int PARTS, int TOKENS, int DEPTH, int STAGES, int SLABS, int COPIES>
__device__ __forceinline__ void many_rows(char* dynamic, const TensorMap& x, const TensorMap& w, const TensorMap& scales, const TensorMap& y,
                                          const float* row_scales, const float* codebook, int m, int n, int k, int whole, int band,
                                          float4* workspace, int* counters) {
    constexpr int ROWS = 64 * CONSUMERS * PARTS, COUNT = TOKENS / 2, THREADS = CONSUMERS * GROUP;
    constexpr bool FOUR_BIT = GROUP_SIZE > 0;
    constexpr int SLAB_TOKENS = TOKENS < 32 ? TOKENS : 32, SLAB_BYTES = SLAB_TOKENS * ROW_BYTES;
    using Shared = Memory<SCHEME, GROUP_SIZE, ROWS, TOKENS, DEPTH, STAGES, COPIES>;
    __shared__ int arrived_before;
    char* const slabs = dynamic;  // they come first, on multiples of 1024 bytes
    char* const own_memory = dynamic + (SLABS * SLAB_BYTES + 1023) / 1024 * 1024;
    const Shared memory(own_memory + Multiplier::SHARED_BYTES);
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
    if (SCHEME == Scheme::kCodebook) make_table<T, COPIES>(memory.table(), codebook, threadIdx.x, blockDim.x);
    __syncthreads();

    Schedule schedule(row_tiles * token_tiles, whole, steps);
    Ring<STAGES> ring;
    Item item;
    if (warpgroup == CONSUMERS) {
        register_deallocate<40>();
        grid_dependency_wait();  // what consumers write comes after what they read, and that after this
        grid_dependency_launch();
        while (thread == 0 && schedule.item(item)) {
            const Tile tile(item.tile, row_tiles, token_tiles, band);
            for (int depth = item.first * STEP; depth < item.last * STEP; depth += DEPTH, ring.advance()) {
                mbarrier_wait(&empty[ring.stage], ring.parity ^ 1);
                memory.load_w(ring.stage, w, scales, depth, tile.row * ROWS);
                memory.load_x(ring.stage, x, depth, tile.column * TOKENS);
            }
        }
        return;
    }

    register_allocate<CONSUMERS == 3 ? 152 : 232>();
    const int own_row = thread / 32 * 16 + lane / 4;  // among a part's 64 rows
    float d[PARTS][COUNT];
    int slab = 0;
    constexpr int OWN = SLABS / CONSUMERS;  // slabs of this warpgroup
    Multiplier multiplier(memory, own_memory);
    while (schedule.item(item)) {
        const Tile tile(item.tile, row_tiles, token_tiles, band);
        multiplier.multiply(d, item, ring);

        if (item.last - item.first < steps) {
            constexpr int VECTORS = PARTS * COUNT / 4, TILE = ROWS * TOKENS / 4, AT_ONCE = VECTORS < 16 ? VECTORS : 16;
            float4* const own = workspace + threadIdx.x;
            float4* const mine = own + schedule.slot(blockIdx.x, item.tile) * TILE;
            const auto vector = [&](int i) { return &d[i / (COUNT / 4)][i % (COUNT / 4) * 4]; };
#pragma unroll
            for (int i = 0; i < VECTORS; ++i) mine[i * THREADS] = make_float4(vector(i)[0], vector(i)[1], vector(i)[2], vector(i)[3]);
            const Meeting meeting = meet(schedule, item.tile, counters, arrived_before, 1 + CONSUMERS, THREADS);
            if (!meeting.is_last) continue;
            const float4* theirs = own + schedule.slot(meeting.first, item.tile) * TILE;
#pragma unroll
            for (int i = 0; i < VECTORS; ++i) {
                const float4 part = __ldcg(theirs + i * THREADS);
                vector(i)[0] = part.x, vector(i)[1] = part.y, vector(i)[2] = part.z, vector(i)[3] = part.w;
            }
            for (int block = meeting.first + 1; block <= meeting.last; ++block) {
                theirs = own + schedule.slot(block, item.tile) * TILE;
#pragma unroll
                for (int first = 0; first < VECTORS; first += AT_ONCE) {
                    __syncwarp();  // keeps the compiler from loading more at once than there are registers for
#pragma unroll
                    for (int i = first; i < first + AT_ONCE; ++i) {
                        const float4 part = __ldcg(theirs + i * THREADS);
                        vector(i)[0] += part.x, vector(i)[1] += part.y, vector(i)[2] += part.z, vector(i)[3] += part.w;
                    }
                }
            }
        }
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            const int row = tile.row * ROWS + (warpgroup * PARTS + part) * 64;
            float factors[2];
            for (int r = 0; r < 2; ++r) factors[r] = !FOUR_BIT && row + own_row + 8 * r < n ? row_scales[row + own_row + 8 * r] : 1.0f;
            store_part<T, !FOUR_BIT, SLAB_TOKENS, OWN>(y, slabs + warpgroup * OWN * SLAB_BYTES, slab, d[part], row, tile.column * TOKENS, factors);
        }
    }
    multiplier.end();
    if (thread == 0) tma_wait_read<0>();
}
