// Sum, v3: warp shuffles. A fixed number of threads walks over all elements, 16 bytes at a time; registers do the rest.
//   Idea      Each thread adds up its share in a register (a grid-stride loop), a warp's 32 registers meet in five shuffles, a
//             block's warps in one more round. A second launch, of one block, adds the blocks' partial sums.
//   Predicts  Barriers a thread: 2 in all, not 8 for each 256 elements (v2). Four loads of 16 bytes in flight a thread: bound by
//             memory, 64 Mi floats in about 0.06 ms.
//   Measured  data/measured/h200/sum.csv: 16777216 elements: v2 0.0811 ms -> v3 0.0216 ms.
//   Wastes    The second launch, a few microseconds: everything for a short array. The last block to finish could do its work.
#include "block.cuh"
#include "vector.cuh"

constexpr int LOADS = 4;  // of WIDTH elements each, in flight at once in every thread

// Block b writes the sum of its share of x[0], x[step], .. x[(n-1) * step] to partial[b]. Any grid, any block of whole warps; the same
// grid gives the same bits every time. WIDTH is 4 where x lies on a multiple of 16 bytes and step is 1; else 1.
template <int WIDTH>
__global__ void sum_warp(const float* x, float* partial, long long n, long long step) {
    const long long first = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    const long long stride = (long long)gridDim.x * blockDim.x;
    const long long vectors = n / WIDTH;

    float sum[WIDTH] = {};
    for (long long i = first; i < vectors; i += LOADS * stride) {
        float values[LOADS][WIDTH] = {};
#pragma unroll
        for (int k = 0; k < LOADS; ++k) {
            if (i + k * stride < vectors) load_vector(x + (i + k * stride) * WIDTH * step, values[k]);
        }
#pragma unroll
        for (int k = 0; k < LOADS; ++k) {
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) sum[j] += values[k][j];
        }
    }
    for (long long i = vectors * WIDTH + first; i < n; i += stride) sum[0] += x[i * step];  // the last n % WIDTH elements

    float total = 0.0f;
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) total += sum[j];
    total = block_sum(total);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}
