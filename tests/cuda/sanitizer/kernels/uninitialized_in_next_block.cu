// Uninitialized: block 0 fills a table in shared memory for everyone.
//   Mistake   Only block 0 loads the table, to save the other blocks the work.
//   Why       Each block has its own shared memory, and it holds nothing when the block starts.
//   Fix       Every block loads the table.
//
// expect: uninitialized
// launch: grid=3 block=32 args=weight[32],x[96],y[96]
// array: table
// block: 1
// result: y = (weight * x.view(3, 32)).flatten()

extern "C" __global__ void bad(const float* weight, const float* x, float* y) {
    __shared__ float table[32];
    int t = threadIdx.x, i = blockIdx.x * 32 + t;
    if (blockIdx.x == 0) table[t] = weight[t];
    __syncthreads();
    y[i] = table[t] * x[i];  // <-- here
}

extern "C" __global__ void good(const float* weight, const float* x, float* y) {
    __shared__ float table[32];
    int t = threadIdx.x, i = blockIdx.x * 32 + t;
    table[t] = weight[t];
    __syncthreads();
    y[i] = table[t] * x[i];
}
