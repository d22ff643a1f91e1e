// Uninitialized: the last step of a block reduction reads 32 partial sums, and there are 2.
//   Mistake   Every lane of the first warp reads partial[lane], as if the block had 32 warps.
//   Why       A block of 64 threads has two warps; partial[2] to partial[31] were never written.
//   Fix       Lanes without a warp behind them contribute 0.
//
// expect: uninitialized
// launch: grid=2 block=64 args=x[128],y[2]
// array: partial
// index: 2
// block: 0
// threads: 2
// result: y = x.view(2, 64).sum(1)

__device__ float warp_sum(float value) {
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

extern "C" __global__ void bad(const float* x, float* y) {
    __shared__ float partial[32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float sum = warp_sum(x[blockIdx.x * 64 + threadIdx.x]);
    if (lane == 0) partial[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        sum = partial[lane];  // <-- here
        sum = warp_sum(sum);
        if (lane == 0) y[blockIdx.x] = sum;
    }
}

extern "C" __global__ void good(const float* x, float* y) {
    __shared__ float partial[32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float sum = warp_sum(x[blockIdx.x * 64 + threadIdx.x]);
    if (lane == 0) partial[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        sum = lane < blockDim.x / 32 ? partial[lane] : 0.0f;
        sum = warp_sum(sum);
        if (lane == 0) y[blockIdx.x] = sum;
    }
}
