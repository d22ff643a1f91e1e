// Uninitialized: atomics add to a total that never was zero.
//   Mistake   Nobody sets `total` before the first atomicAdd.
//   Why       `__shared__ int total;` reserves memory and puts nothing into it. An initialiser is not allowed there.
//   Fix       One thread sets it to 0, then a barrier.
//
// expect: uninitialized
// launch: grid=2 block=64 args=x:int32[128],y:int32[2]
// array: total
// block: 0
// result: y = x.view(2, 64).sum(1).int()

extern "C" __global__ void bad(const int* x, int* y) {
    __shared__ int total;
    int t = threadIdx.x;
    atomicAdd(&total, x[blockIdx.x * 64 + t]);  // <-- here
    __syncthreads();
    if (t == 0) y[blockIdx.x] = total;
}

extern "C" __global__ void good(const int* x, int* y) {
    __shared__ int total;
    int t = threadIdx.x;
    if (t == 0) total = 0;
    __syncthreads();
    atomicAdd(&total, x[blockIdx.x * 64 + t]);
    __syncthreads();
    if (t == 0) y[blockIdx.x] = total;
}
