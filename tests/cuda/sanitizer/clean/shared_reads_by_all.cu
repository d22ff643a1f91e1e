// Clean: any number of threads may read the same element, once a barrier stands behind its writing.
//
// expect: clean
// launch: grid=2 block=64 shared_mem=256 args=x[128],y[128]
// result: y = (x.view(2, 64) - x.view(2, 64).mean(1, keepdim=True)).flatten()

extern "C" __global__ void good(const float* x, float* y) {
    extern __shared__ float tile[];
    int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
    tile[t] = x[i];
    __syncthreads();
    float sum = 0.0f;
    for (int k = 0; k < 64; k++) sum += tile[k];
    y[i] = x[i] - sum / 64.0f;
}
