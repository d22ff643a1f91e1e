// Quantised matmul, v5, for many rows of x: Hopper. y = x W^T for 64 to thousands of rows of x, W in 4 or 8 bits (sm_90a).
//   Idea      As v5_few_rows.cu: W becomes wgmma's A operand in registers. But now multiplication takes longer than W's way from memory, so
//             blocks stay, and tiles are as large as registers allow, 128 rows of W by 256 of x: each number is unpacked once for 256
//             multiplications, while the tensor cores work on what was unpacked before, or for the other warpgroup.
//             Tiles are dealt out whole as long as there is one for every block. What is left, at a hundred rows of x everything, is cut
//             along k into equal parts, one for every block, wherever a tile ends (stream_k.cuh).
//   Predicts  Unpacking takes 4 instructions for two numbers, 64 of a warp for each 512 clocks of its tensor core: an eighth of its time, and
//             the tensor cores do not wait for it. So as fast as v7 of matmul, less what 3/4 of W's bytes saved give back.
//             v7, TURNS: warpgroups take turns (hopper_weights.cuh), so that one multiplies while the others unpack. It is not recorded yet.
//   Measured  data/measured/h200/quant_matmul.csv: 11008 x 4096 in int4: 256 rows 112 -> 45.2 us (cuBLAS with a bf16 weight 33.8), 4096 rows 1.57
//             -> 0.460 ms (0.478).
//   Wastes    Each 128 rows of W are unpacked again for every 256 rows of x; parts of tiles pass through L2.
#include "many_rows.cuh"

// W becomes A fragments in registers, of which there are two sets: one is filled while the tensor cores read the other.
template <class T, Scheme SCHEME, int GROUP_SIZE, int CONSUMERS, int PARTS, int TOKENS, int DEPTH, int STAGES, int COPIES, bool TURNS>
struct FromRegisters {
    static constexpr int ROWS = 64 * CONSUMERS * PARTS, SHARED_BYTES = 0, SHARES = STEP / DEPTH;  // stages of a step
    using Shared = Memory<SCHEME, GROUP_SIZE, ROWS, TOKENS, DEPTH, STAGES, COPIES>;
    const Shared memory;
    const Unpacker<T, SCHEME, GROUP_SIZE, ROWS, DEPTH, COPIES> unpacker;
    const Turns<TURNS ? CONSUMERS : 1> turns;
    unsigned a[2][PARTS][4][4];  // of 64 of k each

    __device__ FromRegisters(const Shared& memory, char*) : memory(memory), unpacker(memory.table()), turns(2 + CONSUMERS, threadIdx.x / GROUP) {}

    __device__ __forceinline__ void multiply(float (&d)[PARTS][TOKENS / 2], const Item& item, Ring<STAGES>& ring) {
        const int row = threadIdx.x / GROUP * PARTS * 64 + threadIdx.x % GROUP / 32 * 16 + threadIdx.x % 32 / 4;
        int before = -1;
        for (int step = item.first; step < item.last; ++step) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int in_stage = SHARES == 2 ? 0 : half;
                if (in_stage == 0) mbarrier_wait(&memory.full()[ring.stage], ring.parity);
#pragma unroll
                for (int part = 0; part < PARTS; ++part)
                    unpacker.unpack(a[half][part], memory.w(ring.stage), memory.scales(ring.stage), in_stage, part * 64 + row);
                const MatrixDescriptor tokens = matrix_descriptor(memory.x(ring.stage) + in_stage * Shared::PANEL_BYTES, 0, 8 * ROW_BYTES, 128);
                turns.wait();
                wgmma_fence();
#pragma unroll
                for (int part = 0; part < PARTS; ++part)
#pragma unroll
                    for (int i = 0; i < 4; ++i) wgmma<T>(d[part], a[half][part][i], tokens + 2 * i, step > item.first || half + i > 0);
                wgmma_commit();
                turns.pass();
                wgmma_wait<1>();
                if (in_stage == 0) {
                    release_stage(memory.empty(), before);
                    before = ring.stage;
                }
                if (SHARES == 2 || half == 1) ring.advance();
            }
        }
#pragma unroll
        for (int part = 0; part < PARTS; ++part) wgmma_wait<0>(d[part]);
        release_stage(memory.empty(), before);
    }
    __device__ void end() const { turns.end(); }
};

template <class T, Scheme SCHEME, int GROUP_SIZE, int CONSUMERS, int PARTS, int TOKENS, int DEPTH, int STAGES, int SLABS, int COPIES, bool TURNS>
__global__ void __launch_bounds__(GROUP * (CONSUMERS + 1), 1)
    quant_matmul_hopper(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap scales,
                        const __grid_constant__ TensorMap y, const float* row_scales, const float* codebook, int m, int n, int k, int whole,
                        int band, float4* workspace, int* counters) {
    using Multiplier = FromRegisters<T, SCHEME, GROUP_SIZE, CONSUMERS, PARTS, TOKENS, DEPTH, STAGES, COPIES, TURNS>;
    extern __shared__ __align__(1024) char dynamic[];
    many_rows<Multiplier, T, SCHEME, GROUP_SIZE, CONSUMERS, PARTS, TOKENS, DEPTH, STAGES, SLABS, COPIES>(dynamic, x, w, scales, y, row_scales, codebook, m, n, k,
                                                                                                          whole, band, workspace, counters);
}
