// What the kernels of the norms share: a row's statistics, what is written of it, and what its gradient is.
//
//   kRms    y = x / sqrt(mean(x^2) + eps) * weight
//   kLayer  y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + shift
//
// Everything is computed in float32 and rounded once. A thread holds VECTORS vectors of WIDTH elements of its row; what lies beyond the
// end of the row is 0, and counts for nothing.
#pragma once
#include <cuda_fp8.h>
#include <math_constants.h>

#include "named_barrier.cuh"
#include "packed.cuh"
#include "vector.cuh"
#include "warp.cuh"

enum class Norm : int { kRms, kLayer };

// The narrow types that a row may be written as, with a scale: their largest number, and how a float becomes one.
template <class OUT>
constexpr float LARGEST = 0.0f;  // of a type that takes no scale
template <>
constexpr float LARGEST<__nv_fp8_e4m3> = 448.0f;
template <>
constexpr float LARGEST<signed char> = 127.0f;

template <>
__device__ inline __nv_fp8_e4m3 from_float<__nv_fp8_e4m3>(float value) { return __nv_fp8_e4m3(value); }
template <>
__device__ inline signed char from_float<signed char>(float value) {
    return static_cast<signed char>(max(-127, min(127, __float2int_rn(value))));
}

// N floats as e4m3, two in an instruction; as store_vector (vector.cuh).
template <int N>
__device__ void store_vector(__nv_fp8_e4m3* target, const float (&values)[N]) {
    if constexpr (N % 2 == 0) {
        Vector<__nv_fp8x2_storage_t, N / 2> vector;
#pragma unroll
        for (int i = 0; i < N; i += 2) vector.element[i / 2] = __nv_cvt_float2_to_fp8x2(make_float2(values[i], values[i + 1]), __NV_SATFINITE, __NV_E4M3);
        *reinterpret_cast<Vector<__nv_fp8x2_storage_t, N / 2>*>(target) = vector;
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) target[i] = from_float<__nv_fp8_e4m3>(values[i]);
    }
}

// The sums of `part[0] .. part[K-1]` over the THREADS threads that own a row, the largest for the last one if LAST_IS_MAX. Every one of
// them gets the same bits. The warps meet in `meeting`, K of them for each warp; who calls again must bring another place to meet,
// because some may still be reading: two in turn are enough. Where a block has several GROUPS of THREADS threads, each meets on its own.
template <int THREADS, bool LAST_IS_MAX, int GROUPS = 1, int K>
__device__ __forceinline__ void row_sums(float (&part)[K], float* meeting) {
    constexpr int SUMS = LAST_IS_MAX ? K - 1 : K, WARPS = THREADS / 32;
#pragma unroll
    for (int k = 0; k < K; ++k) part[k] = k < SUMS ? warp_sum(part[k]) : warp_max(part[k]);
    if constexpr (WARPS > 1) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x % THREADS / 32;
        if (lane == 0) {
#pragma unroll
            for (int k = 0; k < K; ++k) meeting[k * WARPS + warp] = part[k];
        }
        if constexpr (GROUPS == 1) __syncthreads();
        else named_barrier_sync(1 + threadIdx.x / THREADS, THREADS);
#pragma unroll
        for (int k = 0; k < K; ++k) {
            if constexpr (WARPS <= 8) {
                float all = meeting[k * WARPS];
#pragma unroll
                for (int other = 1; other < WARPS; ++other) {
                    const float value = meeting[k * WARPS + other];
                    all = k < SUMS ? all + value : fmaxf(all, value);
                }
                part[k] = all;
            } else if constexpr ((WARPS & (WARPS - 1)) == 0) {
                part[k] = meeting[k * WARPS + lane % WARPS];
#pragma unroll
                for (int distance = WARPS / 2; distance > 0; distance /= 2) {
                    const float value = __shfl_xor_sync(FULL_WARP, part[k], distance);
                    part[k] = k < SUMS ? part[k] + value : fmaxf(part[k], value);
                }
            } else {
                const float value = lane < WARPS ? meeting[k * WARPS + lane] : 0.0f;  // no maximum here is below 0
                part[k] = k < SUMS ? warp_sum(value) : warp_max(value);
            }
        }
    }
}

// `source[0] .. source[cols-1]`, this thread's share; `otherwise` where there is no source.
template <int THREADS, class T, int VECTORS, int WIDTH>
__device__ __forceinline__ void load_share(const T* source, Vector<T, WIDTH> (&share)[VECTORS], int cols, int first, float otherwise) {
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        const int col = first + k * THREADS * WIDTH;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) share[k].element[j] = from_float<T>(col < cols ? otherwise : 0.0f);
        if (source != nullptr && col < cols) share[k] = *reinterpret_cast<const Vector<T, WIDTH>*>(source + col);
    }
}

template <class T, int VECTORS, int WIDTH>
__device__ __forceinline__ void widen(const Vector<T, WIDTH> (&share)[VECTORS], float (&value)[VECTORS][WIDTH]) {
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) value[k][j] = to_float(share[k].element[j]);
    }
}

// x + residual + bias in place of x, rounded to T as it is written to `sum`: its norm is that of what is written.
template <int THREADS, class T, int VECTORS, int WIDTH>
__device__ __forceinline__ void add_residual(Vector<T, WIDTH> (&x)[VECTORS], const Vector<T, WIDTH> (&residual)[VECTORS],
                                             const Vector<T, WIDTH> (&bias)[VECTORS], T* sum, int cols, int first) {
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        const int col = first + k * THREADS * WIDTH;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j)
            x[k].element[j] = from_float<T>(to_float(x[k].element[j]) + to_float(bias[k].element[j]) + to_float(residual[k].element[j]));
        if (col < cols) *reinterpret_cast<Vector<T, WIDTH>*>(sum + col) = x[k];
    }
}

// The mean of a row, by one meeting.
template <int THREADS, int GROUPS = 1, class T, int VECTORS, int WIDTH>
__device__ __forceinline__ float row_mean(const Packed<T, WIDTH> (&value)[VECTORS], int cols, float* meeting) {
    float sum[1] = {0.0f};
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) sum[0] += value[k][j];
    }
    row_sums<THREADS, false, GROUPS>(sum, meeting);
    return sum[0] / cols;
}

// The mean of a row, by one meeting; and in place of its elements, what they are above it.
template <int THREADS, int VECTORS, int WIDTH>
__device__ __forceinline__ void subtract_mean(float (&value)[VECTORS][WIDTH], int cols, int first, float* meeting) {
    float sum[1] = {0.0f};
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) sum[0] += value[k][j];
    }
    row_sums<THREADS, false>(sum, meeting);
    const float mean = sum[0] / cols;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) value[k][j] = first + k * THREADS * WIDTH < cols ? value[k][j] - mean : 0.0f;
    }
}

// Normalises a row (of kLayer after subtract_mean) and writes it, by one meeting. As OUT of fewer bits it is written as y / scale with
// scale = max |y| / LARGEST, for which nothing need be read twice: the largest |x * weight| is known together with the sum of squares.
// Calls met() as soon as all threads have come to the meeting.
template <int KIND, int THREADS, class OUT, class W, int VECTORS, int WIDTH, class Met>
__device__ __forceinline__ void write_normalised(float (&value)[VECTORS][WIDTH], const Vector<W, WIDTH> (&weight)[VECTORS],
                                                 const Vector<W, WIDTH> (&shift)[VECTORS], OUT* y, float* scale, int cols, int first,
                                                 float eps, float* meeting, Met met) {
    constexpr bool NARROW = LARGEST<OUT> > 0.0f;
    float part[1 + NARROW] = {};
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            part[0] += value[k][j] * value[k][j];
            value[k][j] *= to_float(weight[k].element[j]);
            if constexpr (NARROW) part[1] = fmaxf(part[1], fabsf(value[k][j]));
        }
    }
    row_sums<THREADS, NARROW>(part, meeting);
    met();
    float factor = rsqrtf(part[0] / cols + eps);
    if constexpr (NARROW) {
        if (first == 0) *scale = factor * part[1] / LARGEST<OUT>;
        factor = part[1] > 0.0f ? LARGEST<OUT> / part[1] : 0.0f;
    }
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        const int col = first + k * THREADS * WIDTH;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            value[k][j] *= factor;
            if constexpr (static_cast<Norm>(KIND) == Norm::kLayer) value[k][j] += to_float(shift[k].element[j]);
        }
        if (col < cols) store_vector(y + col, value[k]);
    }
}

// Writes a row's gradient, from `gradient`, that of its norm, and `x`; and adds to the sums for weight and shift what the row adds to their
// gradients. With n = (x - mean) * rstd (mean = 0 for kRms) and g = gradient * weight
//
//   dx = rstd * (g - mean(g) - n * mean(g * n)) + added      dweight = sum over rows of gradient * n      dshift = that of gradient
//
// where mean(g) is missing for kRms. One meeting, and for kLayer another one for the mean; met() as soon as all have come to the first.
template <int KIND, int THREADS, int GROUPS, class T, class W, int VECTORS, int WIDTH, class Met>
__device__ __forceinline__ void write_gradient(Packed<T, WIDTH> (&x)[VECTORS], Packed<T, WIDTH> (&gradient)[VECTORS],
                                               const Packed<T, WIDTH> (&added)[VECTORS], const Packed<W, WIDTH> (&weight)[VECTORS],
                                               float (&dweight)[VECTORS][WIDTH], float (&dshift)[KIND == 1 ? VECTORS : 1][WIDTH], T* dx,
                                               int cols, int first, float eps, float* mean_meeting, float* meeting, Met met) {
    constexpr bool LAYER = static_cast<Norm>(KIND) == Norm::kLayer, MANY = true;
    const auto inside = [&](int k) { return first + k * THREADS * WIDTH < cols; };
    float mean = 0.0f;
    if constexpr (LAYER) {
        mean = row_mean<THREADS, GROUPS>(x, cols, mean_meeting);
        met();
        if constexpr (MANY) stay_packed(x);
    }
    float part[2 + LAYER] = {};
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            const float above = !LAYER || inside(k) ? x[k][j] - mean : 0.0f, g = gradient[k][j] * weight[k][j];
            part[0] += above * above;
            part[1] += g * above;
            if constexpr (LAYER) part[2] += g;
        }
    }
    row_sums<THREADS, false, GROUPS>(part, meeting);
    if constexpr (!LAYER) met();
    if constexpr (MANY) stay_packed(x), stay_packed(gradient);
    const float rstd = rsqrtf(part[0] / cols + eps), along = part[1] / cols * rstd * rstd;
    const float mean_g = LAYER ? part[1 + LAYER] / cols : 0.0f;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        float result[WIDTH];
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            const float above = x[k][j] - mean;
            dweight[k][j] += gradient[k][j] * (above * rstd);  // beyond the end the gradient is 0
            if constexpr (LAYER) dshift[k][j] += gradient[k][j];
            result[j] = rstd * (gradient[k][j] * weight[k][j] - mean_g - above * along) + added[k][j];
        }
        if (inside(k)) store_vector(dx + first + k * THREADS * WIDTH, result);
    }
}

// WIDTH floats to memory, 16 bytes at a time.
template <int WIDTH>
__device__ __forceinline__ void store_floats(float* target, const float (&values)[WIDTH]) {
    if constexpr (WIDTH % 4 == 0) {
#pragma unroll
        for (int j = 0; j < WIDTH; j += 4) *reinterpret_cast<float4*>(target + j) = make_float4(values[j], values[j + 1], values[j + 2], values[j + 3]);
    } else {
        store_vector(target, values);  // one of them
    }
}

// A thread's sums over the rows of its block: a row of partial sums, and such a row added to them.
template <int THREADS, int VECTORS, int WIDTH>
__device__ __forceinline__ void write_partial(const float (&sums)[VECTORS][WIDTH], float* partial, int cols, int first) {
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        const int col = first + k * THREADS * WIDTH;
        if (col < cols) store_floats(partial + col, sums[k]);
    }
}

template <int THREADS, int VECTORS, int WIDTH>
__device__ __forceinline__ void add_partial(float (&sums)[VECTORS][WIDTH], const float* partial, int cols, int first) {
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        const int col = first + k * THREADS * WIDTH;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            if (col < cols) sums[k][j] += partial[col + j];
        }
    }
}
