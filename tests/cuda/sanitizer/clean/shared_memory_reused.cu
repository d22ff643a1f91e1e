// Clean: one buffer serves two purposes and two types, with a barrier between them.
//
// expect: clean
// launch: grid=2 block=64 shared_mem=512 args=x[128],y:int64[128]
// result: y = (x.view(2, 64).flip(1).flatten() > 0).long()

extern "C" __global__ void good(const float* x, long long* y) {
    extern __shared__ double buffer[];
    float* values = reinterpret_cast<float*>(buffer);
    long long* signs = reinterpret_cast<long long*>(buffer);
    int t = threadIdx.x, first = blockIdx.x * 64;
    values[t] = x[first + t];
    __syncthreads();
    float value = values[63 - t];
    __syncthreads();
    signs[t] = value > 0.0f;
    __syncthreads();
    y[first + t] = signs[t];
}
