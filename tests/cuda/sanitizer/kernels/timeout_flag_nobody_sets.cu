// Timeout: the block waits for a flag that nobody sets.
//   Mistake   The flag is set by thread blockDim.x, and threads are counted from 0.
//   Why       No such thread exists; the others ask for ever.
//   Fix       The last thread is blockDim.x - 1.
//
// expect: timeout
// launch: grid=1 block=64 args=flag:int32[1]=0,y:int32[64]
// block: 0
// result: flag = torch.ones(1).int()
// result: y = torch.arange(64).int()

extern "C" __global__ void bad(int* flag, int* y) {
    if (threadIdx.x == blockDim.x) atomicExch(flag, 1);
    while (atomicAdd(flag, 0) == 0) {}  // <-- here
    y[threadIdx.x] = threadIdx.x;
}

extern "C" __global__ void good(int* flag, int* y) {
    if (threadIdx.x == blockDim.x - 1) atomicExch(flag, 1);
    while (atomicAdd(flag, 0) == 0) {}
    y[threadIdx.x] = threadIdx.x;
}
