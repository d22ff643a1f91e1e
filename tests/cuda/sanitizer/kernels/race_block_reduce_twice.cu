// Race: a block reduction that works once, called twice.
//   Mistake   The second call writes partial[warp] while threads of a slow warp still read the first call's values.
//   Why       A helper that leaves its shared memory in use must not be entered again without a barrier.
//   Fix       Begin (or end) the helper with __syncthreads().
//
// expect: race
// launch: grid=2 block=64 args=x[128],y[2,2]
// array: partial
// block: 0
// result: y = torch.stack([x.view(2, 64).sum(1), (x * x).view(2, 64).sum(1)], 1)

__device__ float warp_sum(float value) {
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

__device__ float bad_block_sum(float value, float* partial) {
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;  // <-- here
    __syncthreads();
    return partial[0] + partial[1];  // <-- here
}

__device__ float good_block_sum(float value, float* partial) {
    value = warp_sum(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    return partial[0] + partial[1];
}

extern "C" __global__ void bad(const float* x, float* y) {
    __shared__ float partial[2];
    float value = x[blockIdx.x * 64 + threadIdx.x];
    float sum = bad_block_sum(value, partial);
    float squares = bad_block_sum(value * value, partial);
    if (threadIdx.x == 0) {
        y[2 * blockIdx.x] = sum;
        y[2 * blockIdx.x + 1] = squares;
    }
}

extern "C" __global__ void good(const float* x, float* y) {
    __shared__ float partial[2];
    float value = x[blockIdx.x * 64 + threadIdx.x];
    float sum = good_block_sum(value, partial);
    float squares = good_block_sum(value * value, partial);
    if (threadIdx.x == 0) {
        y[2 * blockIdx.x] = sum;
        y[2 * blockIdx.x + 1] = squares;
    }
}
