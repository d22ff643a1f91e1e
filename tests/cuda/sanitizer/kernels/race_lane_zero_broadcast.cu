// Race: one lane looks something up for its warp, and the warp does not wait.
//   Mistake   Lane 0 writes `scale`, all lanes read it at once.
//   Why       The lanes of a warp are threads like any others: memory that one writes and another reads needs a
//             synchronisation between them.
//   Fix       __syncwarp().
//
// expect: race
// launch: grid=2 block=32 args=scales[2],x[64],y[64]
// array: scale
// block: 0
// result: y = (scales[:, None] * x.view(2, 32)).flatten()

extern "C" __global__ void bad(const float* scales, const float* x, float* y) {
    __shared__ float scale;
    int i = blockIdx.x * 32 + threadIdx.x;
    if (threadIdx.x == 0) scale = scales[blockIdx.x];  // <-- here
    y[i] = scale * x[i];  // <-- here
}

extern "C" __global__ void good(const float* scales, const float* x, float* y) {
    __shared__ float scale;
    int i = blockIdx.x * 32 + threadIdx.x;
    if (threadIdx.x == 0) scale = scales[blockIdx.x];
    __syncwarp();
    y[i] = scale * x[i];
}
