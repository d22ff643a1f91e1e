// Race: a reduction that trusts the lanes of a warp to move in step.
//   Mistake   `volatile` and no __syncwarp(), as code before 2017 was written.
//   Why       Since Volta each lane has its own program counter. volatile makes a lane go to memory; it does not make it
//             wait for the others.
//   Fix       Read, __syncwarp(), write, __syncwarp().
//
// expect: race
// launch: grid=2 block=32 args=x[64],y[2]
// array: partial
// block: 0
// result: y = x.view(2, 32).sum(1)

extern "C" __global__ void bad(const float* x, float* y) {
    __shared__ volatile float partial[32];
    int t = threadIdx.x;
    partial[t] = x[blockIdx.x * 32 + t];
    __syncwarp();
    for (int offset = 16; offset > 0; offset /= 2) {
        float sum = partial[t] + partial[t ^ offset];  // <-- here
        partial[t] = sum;  // <-- here
    }
    if (t == 0) y[blockIdx.x] = partial[0];
}

extern "C" __global__ void good(const float* x, float* y) {
    __shared__ float partial[32];
    int t = threadIdx.x;
    partial[t] = x[blockIdx.x * 32 + t];
    __syncwarp();
    for (int offset = 16; offset > 0; offset /= 2) {
        float sum = partial[t] + partial[t ^ offset];
        __syncwarp();
        partial[t] = sum;
        __syncwarp();
    }
    if (t == 0) y[blockIdx.x] = partial[0];
}
