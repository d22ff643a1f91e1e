// Race: a total is read while others still add to it.
//   Mistake   Every thread adds its value and at once reads the total.
//   Why       An atomic add is done when it returns, but only one's own. The read sees some of the others' values.
//   Fix       Wait until all have added.
//
// expect: race
// launch: grid=1 block=64 args=x:int32[64],y:int32[64]
// array: total
// block: 0
// result: y = x.sum().int().expand(64)

extern "C" __global__ void bad(const int* x, int* y) {
    __shared__ int total;
    int t = threadIdx.x;
    if (t == 0) total = 0;
    __syncthreads();
    atomicAdd(&total, x[t]);  // <-- here
    y[t] = total;  // <-- here
}

extern "C" __global__ void good(const int* x, int* y) {
    __shared__ int total;
    int t = threadIdx.x;
    if (t == 0) total = 0;
    __syncthreads();
    atomicAdd(&total, x[t]);
    __syncthreads();
    y[t] = total;
}
