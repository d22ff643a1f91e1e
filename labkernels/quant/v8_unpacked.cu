// Quantised matmul, v8: unpacked into shared memory. y = x W^T for 64 to thousands of rows of x on Hopper, W in 4 or 8 bits (sm_90a).
//   Idea      With many rows of x multiplication takes longer than all else, and tensor cores must never wait. wgmma with A in
//             registers, as in v5 and v7, holds its warps until the tensor cores have taken the registers. So a warpgroup unpacks its 64 rows of W
//             into shared memory, 8 KB for 64 of k, and wgmma reads them there, and works on one such piece while the warpgroup unpacks the
//             next. No other warpgroup needs the piece: they never wait for each other.
//   Predicts  A lane unpacks 32 numbers in some 80 instructions, for 4 wgmma that keep the tensor cores busy for 512 clocks (256 rows of x).
//             So as fast as v7 of matmul, less what 3/4 of W's bytes saved give back.
//   Measured  Not recorded yet.
//   Wastes    Each 128 rows of W are unpacked again for every 256 rows of x; parts of tiles pass through L2.
#include "many_rows.cuh"

// W becomes 64 x 64 of A in shared memory, for each warpgroup by itself.
template <class T, Scheme SCHEME, int GROUP_SIZE, int CONSUMERS, int TOKENS, int DEPTH, int STAGES, int COPIES>
struct FromShared {
    static constexpr int PIECES = 3, PIECE_BYTES = 64 * ROW_BYTES;  // one is read, one is written, and not all warps are equally far
    static constexpr int ROWS = 64 * CONSUMERS, SHARED_BYTES = CONSUMERS * PIECES * PIECE_BYTES, SHARES = STEP / DEPTH;  // stages of a step
    using Shared = Memory<SCHEME, GROUP_SIZE, ROWS, TOKENS, DEPTH, STAGES, COPIES>;
    const Shared memory;
    const WideUnpacker<T, SCHEME, GROUP_SIZE, ROWS, DEPTH, COPIES> unpacker;
    char* const pieces;
    int piece = 0;

    __device__ FromShared(const Shared& memory, char* shared)
        : memory(memory), unpacker(memory.table()), pieces(shared + threadIdx.x / GROUP * PIECES * PIECE_BYTES) {}

    __device__ __forceinline__ void multiply(float (&d)[1][TOKENS / 2], const Item& item, Ring<STAGES>& ring) {
        const int warpgroup = threadIdx.x / GROUP;
        int before = -1;
        for (int step = item.first; step < item.last; ++step) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int in_stage = SHARES == 2 ? 0 : half;
                if (in_stage == 0) mbarrier_wait(&memory.full()[ring.stage], ring.parity);
                char* const unpacked = pieces + piece * PIECE_BYTES;
                piece = piece + 1 == PIECES ? 0 : piece + 1;
                unpacker.unpack(unpacked, memory.w(ring.stage), memory.scales(ring.stage), in_stage, warpgroup * 64);
                fence_proxy_async_shared();
                named_barrier_sync(1 + warpgroup, GROUP);
                const MatrixDescriptor tokens = matrix_descriptor(memory.x(ring.stage) + in_stage * Shared::PANEL_BYTES, 0, 8 * ROW_BYTES, 128);
                const MatrixDescriptor rows = matrix_descriptor(unpacked, 0, 8 * ROW_BYTES, 128);
                wgmma_fence();
#pragma unroll
                for (int i = 0; i < 4; ++i) wgmma<T>(d[0], rows + 2 * i, tokens + 2 * i, step > item.first || half + i > 0);
                wgmma_commit();
                wgmma_wait<1>();
                if (in_stage == 0) {
                    release_stage(memory.empty(), before);
                    before = ring.stage;
                }
                if (SHARES == 2 || half == 1) ring.advance();
            }
        }
        wgmma_wait<0>(d[0]);
        release_stage(memory.empty(), before);
    }
    __device__ void end() const {}
};

template <class T, Scheme SCHEME, int GROUP_SIZE, int CONSUMERS, int PARTS, int TOKENS, int DEPTH, int STAGES, int SLABS, int COPIES>
__global__ void __launch_bounds__(GROUP * (CONSUMERS + 1), 1)
    quant_matmul_unpacked(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap scales,
                          const __grid_constant__ TensorMap y, const float* row_scales, const float* codebook, int m, int n, int k, int whole,
                          int band, float4* workspace, int* counters) {
    using Multiplier = FromShared<T, SCHEME, GROUP_SIZE, CONSUMERS, TOKENS, DEPTH, STAGES, COPIES>;
    extern __shared__ __align__(1024) char dynamic[];
    many_rows<Multiplier, T, SCHEME, GROUP_SIZE, CONSUMERS, PARTS, TOKENS, DEPTH, STAGES, SLABS, COPIES>(dynamic, x, w, scales, y, row_scales, codebook, m, n, k,
                                                                                                          whole, band, workspace, counters);
}
