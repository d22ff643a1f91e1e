// Deadlock: the leader waits for the block before it answers its warp.
//   Mistake   Lane 0 goes into __syncthreads(); the other lanes ask it for a value first.
//   Why       The shuffle needs lane 0, and lane 0's barrier needs the lanes that stand in the shuffle.
//   Fix       Shuffle, then wait together.
//
// expect: deadlock
// launch: grid=1 block=64 args=x[64],y[64]
// block: 0
// result: y = (2 * x.view(2, 32)[:, :1]).expand(2, 32).flatten()

extern "C" __global__ void bad(const float* x, float* y) {
    float value = x[threadIdx.x];
    if (threadIdx.x % 32 == 0) {
        value *= 2.0f;
        __syncthreads();  // <-- here
    }
    value = __shfl_sync(0xffffffffu, value, 0);  // <-- here
    y[threadIdx.x] = value;
}

extern "C" __global__ void good(const float* x, float* y) {
    float value = x[threadIdx.x];
    if (threadIdx.x % 32 == 0) {
        value *= 2.0f;
    }
    value = __shfl_sync(0xffffffffu, value, 0);
    __syncthreads();
    y[threadIdx.x] = value;
}
