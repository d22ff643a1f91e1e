// Rows to bytes: q = round(127 x / max |x|), a scale of max |x| / 127 for each row, before w8a8_matmul multiplies them.
//   Idea      One block a row. It keeps what it read in registers while it looks for the largest magnitude, so x is read once. Magnitudes
//             are compared as unsigned words, in which infinity is larger than all numbers and NaN larger than that: nothing is overlooked.
//             To round, 1.5 * 2^23 is added in the fused multiply-add that scales: neighbours are 1 apart there, and the lowest byte of the sum
//             is the result.
//   Predicts  3 bytes an element of a 16-bit x: 50 MB at 4096 x 4096, 12 us at the speed of a copy, beside 90 us of tensor cores.
//   Measured  data/measured/h200/w8a8_matmul.csv holds it together with the product.
//   Wastes    The product reads what was just written. A matmul that quantised its own tiles would do so again for every tile of columns.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "bits.cuh"
#include "vector.cuh"
#include "warp.cuh"

// The byte to which value * inverse rounds, to nearest and half to even, in the lowest bits.
__device__ __forceinline__ unsigned rounded(float value, float inverse) {
    return __float_as_uint(__fmaf_rn(value, inverse, 12582912.0f));
}

// x: rows of k elements, x_stride apart, on multiples of WIDTH elements (8 or 1). q: rows of bytes, q_stride apart, on multiples of WIDTH.
// scales: one a row; NaN for a row in which infinity or NaN is. Launch a block a row, of at most 1024 threads; what exceeds CACHED vectors
// a thread is read twice.
template <class T, int WIDTH, int CACHED>
__global__ void quantise_rows(const T* x, signed char* q, float* scales, int k, long long x_stride, long long q_stride) {
    using Source = Vector<T, WIDTH>;
    x += blockIdx.x * x_stride;
    q += blockIdx.x * q_stride;
    const int count = k / WIDTH;
    const auto read = [&](int i) { return reinterpret_cast<const Source*>(x)[i]; };
    const auto magnitude = [](const Source& source) {
        unsigned most = 0;
#pragma unroll
        for (int e = 0; e < WIDTH; ++e) most = max(most, __float_as_uint(to_float(source.element[e])) & 0x7fffffffu);
        return most;
    };

    Source cached[CACHED];
    unsigned most = 0;
#pragma unroll
    for (int c = 0; c < CACHED; ++c) {
        const int i = c * blockDim.x + threadIdx.x;
        if (i < count) cached[c] = read(i);
    }
#pragma unroll
    for (int c = 0; c < CACHED; ++c)
        if (c * blockDim.x + threadIdx.x < count) most = max(most, magnitude(cached[c]));
    for (int i = CACHED * blockDim.x + threadIdx.x; i < count; i += blockDim.x) most = max(most, magnitude(read(i)));

    __shared__ unsigned of_warps[32];
    most = warp_reduce(most, [](unsigned a, unsigned b) { return max(a, b); });
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = most;
    __syncthreads();
    most = threadIdx.x % 32 < blockDim.x / 32 ? of_warps[threadIdx.x % 32] : 0;
    most = warp_reduce(most, [](unsigned a, unsigned b) { return max(a, b); });
    const float largest = __uint_as_float(most);
    const float inverse = largest < 1e-30f ? 0.0f : __fdiv_rn(127.0f, largest);  // 127 / largest would overflow below 4e-37
    if (threadIdx.x == 0) scales[blockIdx.x] = most < 0x7f800000u ? __fdiv_rn(largest, 127.0f) : __uint_as_float(0x7fffffffu);

    const auto write = [&](int i, const Source& source) {
        if constexpr (WIDTH == 8) {
            unsigned words[2];
#pragma unroll
            for (int w = 0; w < 2; ++w) {
                unsigned pairs[2];
#pragma unroll
                for (int p = 0; p < 2; ++p) {
                    const int e = 4 * w + 2 * p;
                    pairs[p] = prmt(rounded(to_float(source.element[e]), inverse), rounded(to_float(source.element[e + 1]), inverse), 0x0040);
                }
                words[w] = prmt(pairs[0], pairs[1], 0x5410);
            }
            reinterpret_cast<uint2*>(q)[i] = make_uint2(words[0], words[1]);
        } else {
            q[i] = static_cast<signed char>(rounded(to_float(source.element[0]), inverse) & 0xff);
        }
    };
#pragma unroll
    for (int c = 0; c < CACHED; ++c) {
        const int i = c * blockDim.x + threadIdx.x;
        if (i < count) write(i, cached[c]);
    }
    for (int i = CACHED * blockDim.x + threadIdx.x; i < count; i += blockDim.x) write(i, read(i));
}
