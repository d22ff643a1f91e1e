// Clean: a barrier under a condition that is the same for the whole block; blocks past the end return together.
//
// expect: clean
// launch: grid=4 block=32 args=x[64],y[64],n=64
// result: y = x.view(2, 32).flip(1).flatten()

extern "C" __global__ void good(const float* x, float* y, int n) {
    __shared__ float tile[32];
    int t = threadIdx.x, first = blockIdx.x * 32;
    if (first >= n) return;
    if (n > 0) {
        tile[t] = x[first + t];
        __syncthreads();
        y[first + t] = tile[31 - t];
    }
}
