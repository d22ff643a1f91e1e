// Clean: the last block to finish adds up all partial sums, every thread one of them.
//   Thread 0 fences and takes the ticket; what it has seen reaches the block's other threads through the barrier.
//
// expect: clean
// launch: grid=32 block=32 args=x[1024],partial[32],ticket:int32[1]=0,y[1]
// result: y = x.sum().view(1)

__device__ float warp_sum(float value) {
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

extern "C" __global__ void good(const float* x, float* partial, int* ticket, float* y) {
    __shared__ bool is_last;
    float sum = warp_sum(x[blockIdx.x * 32 + threadIdx.x]);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
        __threadfence();
        is_last = atomicAdd(ticket, 1) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    if (is_last) {
        float total = warp_sum(partial[threadIdx.x]);
        if (threadIdx.x == 0) y[0] = total;
    }
}
