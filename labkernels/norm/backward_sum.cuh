// The second kernel of a backward pass: partial sums of dweight and dshift, one row for each block or warp of the first, are added up.
// The order is fixed, so the same inputs give the same bits each time; atomics would be one kernel less, and another result each time.
#pragma once
#include "convert.cuh"
#include "fence.cuh"

// dweight[col] = sum over `count` rows of partial (count, cols), and dshift from the (count, cols) after them where gridDim.y is 2.
// Launch with 32 x SLICES threads: 32 neighbouring columns a block, of which each of SLICES warps adds up every so-manieth row.
template <class W, int SLICES>
__global__ void __launch_bounds__(32 * SLICES) sum_partials(const float* partial, W* dweight, W* dshift, int count, int cols) {
    grid_dependency_wait();
    __shared__ float of_slice[SLICES][32];
    const int col = blockIdx.x * 32 + threadIdx.x;
    partial += blockIdx.y * static_cast<long long>(count) * cols;
    float sum = 0.0f;
    if (col < cols) {
#pragma unroll 8
        for (int row = threadIdx.y; row < count; row += SLICES) sum += partial[row * static_cast<long long>(cols) + col];
    }
    of_slice[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || col >= cols) return;
    sum = 0.0f;
#pragma unroll
    for (int slice = 0; slice < SLICES; ++slice) sum += of_slice[slice][threadIdx.x];
    (blockIdx.y == 0 ? dweight : dshift)[col] = from_float<W>(sum);
}
