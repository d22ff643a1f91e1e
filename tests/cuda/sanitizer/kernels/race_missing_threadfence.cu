// Race: the last block adds up partial sums that may not have arrived.
//   Mistake   Each block writes its partial sum and takes a ticket, with nothing that orders the two.
//   Why       An atomic orders its own address only. The last block may see every ticket and not yet every sum.
//   Fix       __threadfence() between sum and ticket, and again between the ticket and reading the sums.
//
// expect: race
// launch: grid=4 block=32 args=x[128],partial[4],ticket:int32[1]=0,y[1]
// array: partial
// result: y = x.sum().view(1)

__device__ float warp_sum(float value) {
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

extern "C" __global__ void bad(const float* x, float* partial, int* ticket, float* y) {
    float sum = warp_sum(x[blockIdx.x * 32 + threadIdx.x]);
    if (threadIdx.x != 0) return;
    partial[blockIdx.x] = sum;  // <-- here
    if (atomicAdd(ticket, 1) == gridDim.x - 1) {
        float total = 0.0f;
        for (int b = 0; b < gridDim.x; b++) total += partial[b];  // <-- here
        y[0] = total;
    }
}

extern "C" __global__ void good(const float* x, float* partial, int* ticket, float* y) {
    float sum = warp_sum(x[blockIdx.x * 32 + threadIdx.x]);
    if (threadIdx.x != 0) return;
    partial[blockIdx.x] = sum;
    __threadfence();
    if (atomicAdd(ticket, 1) == gridDim.x - 1) {
        __threadfence();
        float total = 0.0f;
        for (int b = 0; b < gridDim.x; b++) total += partial[b];
        y[0] = total;
    }
}
