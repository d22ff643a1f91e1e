// Race: all blocks write their result to the same place.
//   Mistake   y[0] where y[blockIdx.x] is meant.
//   Why       Blocks are not ordered; whichever writes last wins, and it is another one tomorrow.
//   Fix       One element a block.
//
// expect: race
// launch: grid=4 block=32 args=x[128],y[4]
// array: y
// index: 0
// result: y = x.view(4, 32).sum(1)

extern "C" __global__ void bad(const float* x, float* y) {
    float sum = x[blockIdx.x * 32 + threadIdx.x];
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
    if (threadIdx.x == 0) y[0] = sum;  // <-- here
}

extern "C" __global__ void good(const float* x, float* y) {
    float sum = x[blockIdx.x * 32 + threadIdx.x];
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
    if (threadIdx.x == 0) y[blockIdx.x] = sum;
}
