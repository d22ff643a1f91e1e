// Quantised matmul, v5, for many rows of x: Hopper. y = x W^T for 64 to thousands of rows of x, W in 4 or 8 bits (sm_90a).
//   Idea      As v5_few_rows.cu: W becomes wgmma's A operand in registers. But now multiplication takes longer than W's way from memory, so
//             blocks stay, and tiles are as large as registers allow, 128 rows of W by 256 of x: each number is unpacked once for 256
//             multiplications, while the tensor cores work on what was unpacked before, or for the other warpgroup.
//             Tiles are dealt out whole as long as there is one for every block. What is left, at a hundred rows of x everything, is cut
//             along k into equal parts, one for every block, wherever a tile ends (stream_k.cuh).
//   Predicts  Unpacking takes 4 instructions for two numbers, 64 of a warp for each 512 clocks of its tensor core: an eighth of its time, and
//             the tensor cores do not wait for it. So as fast as v7 of matmul, less what 3/4 of W's bytes saved give back.
//   Measured  data/measured/h200/quant_matmul.csv
//   Wastes    Each 128 rows of W are unpacked again for every 256 rows of x; parts of tiles pass through L2.
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

// x, y, w and scales: tensor maps of (m, k), (m, n), W as stored, (n, bytes of a row), and (groups, n). row_scales: of 8-bit numbers, one a
// row of W. workspace: 2 * gridDim.x * ROWS * TOKENS floats, and counters: zeros, one for each tile that is not whole; they are zeros again
// afterwards. Tiles are taken in bands of `band` rows of tiles.
template <class T, Scheme SCHEME, int GROUP_SIZE, int CONSUMERS, int PARTS, int TOKENS, int DEPTH, int STAGES, int SLABS, int COPIES>
__global__ void __launch_bounds__(GROUP * (CONSUMERS + 1), 1)
    quant_matmul_hopper(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap scales,
                        const __grid_constant__ TensorMap y, const float* row_scales, const float* codebook, int m, int n, int k, int whole,
                        int band, float4* workspace, int* counters) {
    constexpr int ROWS = 64 * CONSUMERS * PARTS, COUNT = TOKENS / 2, THREADS = CONSUMERS * GROUP;
    constexpr bool FOUR_BIT = GROUP_SIZE > 0;
    constexpr int SLAB_TOKENS = TOKENS < 32 ? TOKENS : 32, SLAB_BYTES = SLAB_TOKENS * ROW_BYTES, SHARES = STEP / DEPTH;  // stages of a step
    using Shared = Memory<SCHEME, GROUP_SIZE, ROWS, TOKENS, DEPTH, STAGES, COPIES>;
    extern __shared__ __align__(1024) char dynamic[];
    __shared__ int arrived_before;
    char* const slabs = dynamic;  // they come first, on multiples of 1024 bytes
    const Shared memory(dynamic + (SLABS * SLAB_BYTES + 1023) / 1024 * 1024);
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
    const Unpacker<T, SCHEME, GROUP_SIZE, ROWS, DEPTH, COPIES> unpacker(memory.table());
    const int own_row = thread / 32 * 16 + lane / 4;  // among a part's 64 rows
    float d[PARTS][COUNT];
    unsigned a[2][PARTS][4][4];  // two sets, of 64 of k each
    int slab = 0;
    const auto release = [&](int stage) {
        __syncwarp();
        if (lane == 0 && stage >= 0) mbarrier_arrive(&empty[stage]);
    };

    constexpr int OWN = SLABS / CONSUMERS;  // slabs of this warpgroup

    while (schedule.item(item)) {
        const Tile tile(item.tile, row_tiles, token_tiles, band);
        int before = -1;
        for (int step = item.first; step < item.last; ++step) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int in_stage = SHARES == 2 ? 0 : half;
                if (in_stage == 0) mbarrier_wait(&full[ring.stage], ring.parity);
#pragma unroll
                for (int part = 0; part < PARTS; ++part)
                    unpacker.unpack(a[half][part], memory.w(ring.stage), memory.scales(ring.stage), in_stage, (warpgroup * PARTS + part) * 64 + own_row);
                const MatrixDescriptor tokens = matrix_descriptor(memory.x(ring.stage) + in_stage * Shared::PANEL_BYTES, 0, 8 * ROW_BYTES, 128);
                wgmma_fence();
#pragma unroll
                for (int part = 0; part < PARTS; ++part)
#pragma unroll
                    for (int i = 0; i < 4; ++i) wgmma<T>(d[part], a[half][part][i], tokens + 2 * i, step > item.first || half + i > 0);
                wgmma_commit();
                wgmma_wait<1>();
                if (in_stage == 0) {
                    release(before);
                    before = ring.stage;
                }
                if (SHARES == 2 || half == 1) ring.advance();
            }
        }
#pragma unroll
        for (int part = 0; part < PARTS; ++part) wgmma_wait<0>(d[part]);
        release(before);

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
    if (thread == 0) tma_wait_read<0>();
}
