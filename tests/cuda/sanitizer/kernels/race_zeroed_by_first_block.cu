// Race: the first block sets the counter to zero for all blocks.
//   Mistake   Thread 0 of block 0 clears the total, and every block adds to it.
//   Why       Blocks do not start in order, nor wait for each other: another block's sum may be there already, and is lost.
//   Fix       The caller clears it before the launch.
//
// expect: race
// launch: grid=4 block=32 args=x:int32[128],total:int32[1]=0
// array: total
// result: total = x.sum().int().view(1)

extern "C" __global__ void bad(const int* x, int* total) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i == 0) *total = 0;  // <-- here
    __syncthreads();
    atomicAdd(total, x[i]);  // <-- here
}

extern "C" __global__ void good(const int* x, int* total) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(total, x[i]);
}
