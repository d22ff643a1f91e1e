// Race: an in-place scan reads and writes the same tile in one step.
//   Mistake   Thread t adds tile[t - offset] while thread t - offset may already be writing it.
//   Why       Each step must see only the values of the step before. A barrier at the end of the step alone does not
//             keep this step's reads and writes apart.
//   Fix       Read, wait, write, wait.
//
// expect: race
// launch: grid=1 block=64 args=x[64],y[64]
// array: tile
// block: 0
// result: y = x.cumsum(0)

extern "C" __global__ void bad(const float* x, float* y) {
    __shared__ float tile[64];
    int t = threadIdx.x;
    tile[t] = x[t];
    __syncthreads();
    for (int offset = 1; offset < 64; offset *= 2) {
        float left = t >= offset ? tile[t - offset] : 0.0f;  // <-- here
        tile[t] += left;  // <-- here
        __syncthreads();
    }
    y[t] = tile[t];
}

extern "C" __global__ void good(const float* x, float* y) {
    __shared__ float tile[64];
    int t = threadIdx.x;
    tile[t] = x[t];
    __syncthreads();
    for (int offset = 1; offset < 64; offset *= 2) {
        float left = t >= offset ? tile[t - offset] : 0.0f;
        __syncthreads();
        tile[t] += left;
        __syncthreads();
    }
    y[t] = tile[t];
}
