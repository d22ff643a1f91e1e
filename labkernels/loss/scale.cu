// x *= factor, a number on the GPU. Where it is 1, which only the GPU knows, nothing is read or written.
#include "vector.cuh"

template <class T, int WIDTH>
__global__ void scale_unless_one(T* x, const float* factor, long long n) {
    const float by = *factor;
    if (by == 1.0f) return;
    const long long step = static_cast<long long>(gridDim.x) * blockDim.x * WIDTH;
    for (long long i = (blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x) * WIDTH; i < n; i += step) {
        float value[WIDTH];
        load_vector(x + i, value);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) value[j] *= by;
        store_vector(x + i, value);
    }
}
