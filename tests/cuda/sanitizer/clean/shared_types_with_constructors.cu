// Clean: shared arrays of a class type. Its constructor does nothing, as CUDA demands of __shared__ variables.
//
// expect: clean
// launch: grid=2 block=32 args=x:bfloat16[64],y[64]
// result: y = x.float().view(2, 32).flip(1).flatten() * 2
#include <cuda_bf16.h>

struct Pair {
    float value, weight;
    __device__ Pair() {}
    __device__ Pair(float value, float weight) : value(value), weight(weight) {}
};

extern "C" __global__ void good(const __nv_bfloat16* x, float* y) {
    __shared__ __nv_bfloat16 tile[32];
    __shared__ Pair pairs[32];
    int t = threadIdx.x, first = blockIdx.x * 32;
    tile[t] = x[first + t];
    pairs[t] = Pair(__bfloat162float(x[first + t]), 1.0f);
    __syncthreads();
    y[first + t] = __bfloat162float(tile[31 - t]) + pairs[31 - t].value * pairs[31 - t].weight;
}
