// What v7 does to a finished tile, in the registers that hold its sums: scales, bias, activation, residual.
//
//   Idea      Nothing is asked for when it is wanted. A load behind the main loop is a round trip to L2 or beyond; in the branch that keeps it inside the
//             matrix the compiler asks for one at a time, and a thread has 64 pairs of sums.
//               columns   bias and scales: before the main loop a lane reads two neighbours for each 64 columns, and lanes hand them round (shuffles)
//               residual  further stages of the ring, behind those of k: the copy engine brings them while the last stages of k are multiplied
//             What is outside the matrix is computed too, from zeros, and clipped by the copy engine.
//   Gelu      x Phi(x), and Phi(-t) = 2^p(t), p of degree 7: 12 instructions where erff takes 30. |x| < 6: relative error 2^-17.6, every bfloat16 has the
//             bits of the exact value; below -6, where gelu is above -6e-9, absolute 3e-14.
#pragma once
#include "hopper.cuh"

// The scales and biases of a tile's columns (T is 2 or 4 bytes) from `column` on, shared out to the lanes of a warp.
template <class T, int COLUMNS>
struct OfColumns {
    static constexpr int WORDS = sizeof(T) / 2;  // of a pair
    unsigned words[(COLUMNS + 63) / 64][WORDS];

    // `values` lies on a pair's first word; n is even. Without values nothing is read, and nothing may be asked for.
    __device__ __forceinline__ void load(const T* values, int column, int n) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < (COLUMNS + 63) / 64; ++i) {
            const int at = column + 64 * i + 2 * lane;
#pragma unroll
            for (int word = 0; word < WORDS; ++word)
                words[i][word] = values != nullptr && at < n ? reinterpret_cast<const unsigned*>(values + at)[word] : 0;
        }
    }

    // This lane's two columns of the tile's `block` of 8, as wgmma shares them out. All lanes of the warp call.
    __device__ __forceinline__ void pair(int block, float (&values)[2]) const {
        unsigned own[WORDS];
#pragma unroll
        for (int word = 0; word < WORDS; ++word) own[word] = __shfl_sync(0xffffffff, words[block / 8][word], block % 8 * 4 + threadIdx.x % 4);
#pragma unroll
        for (int i = 0; i < 2; ++i) values[i] = to_float(reinterpret_cast<const T*>(own)[i]);
    }
};

// How the residual's tile lies in stages of the ring: in strips of WIDTH columns, EACH of them in all stages but the last.
template <class Memory, class T, int ROWS, int COLUMNS>
struct ResidualStages {
    static constexpr int WIDTH = COLUMNS % 64 ? 32 : 64, ROW = WIDTH * sizeof(T), STRIP_BYTES = ROWS * ROW, STRIPS = COLUMNS / WIDTH;
    static constexpr int FIT = Memory::STAGE_BYTES / STRIP_BYTES, EACH = FIT < STRIPS ? FIT : STRIPS, COUNT = (STRIPS + EACH - 1) / EACH;

    __device__ static constexpr int strips(int stage) { return stage + 1 < COUNT ? EACH : STRIPS - stage * EACH; }
};

// Phi(-t) as a power of two. At infinity the exponent is -inf; x Phi(x) is then inf, and NaN for -inf, as PyTorch has it.
__device__ __forceinline__ float gelu_by_power(float x) {
    const float t = fabsf(x);
    float exponent = -1.793780597836303e-06f;
    exponent = fmaf(exponent, t, 6.0726164520019665e-05f);
    exponent = fmaf(exponent, t, -0.0009231857839040458f);
    exponent = fmaf(exponent, t, 0.008476847782731056f);
    exponent = fmaf(exponent, t, -0.05389093980193138f);
    exponent = fmaf(exponent, t, -0.4585415720939636f);
    exponent = fmaf(exponent, t, -1.151214361190796f);
    exponent = fmaf(exponent, t, -1.0f);
    const float beyond = exp2_approx(exponent);
    return x * (x > 0.0f ? 1.0f - beyond : beyond);
}

template <int ACTIVATION, class T>
__device__ __forceinline__ float activate_tile(float x) {
    if constexpr (static_cast<Activation>(ACTIVATION) == Activation::kGelu && sizeof(T) == 2) return gelu_by_power(x);
    else return activate<ACTIVATION, T>(x);
}

// sums *= their row's scale times their column's. A thread's sums are in two rows, 8 apart.
template <int COLUMNS>
__device__ __forceinline__ void scale_sums(float (&sums)[COLUMNS / 2], const float (&of_row)[2], const OfColumns<float, COLUMNS>& of_columns) {
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; i += 4) {
        float scale[2];
        of_columns.pair(i / 4, scale);
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i + j] *= of_row[j / 2] * scale[j % 2];
    }
}

template <int COLUMNS, class T>
__device__ __forceinline__ void add_bias(float (&sums)[COLUMNS / 2], const OfColumns<T, COLUMNS>& bias) {
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; i += 4) {
        float added[2];
        bias.pair(i / 4, added);
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i + j] += added[j % 2];
    }
}

// sums += 64 rows of a strip of the residual, which begins at the tile's column `column`: ldmatrix shares elements out as wgmma does sums.
template <class T, int WIDTH, int HALF>
__device__ __forceinline__ void add_strip(float (&sums)[HALF], int column, const char* strip) {
    const int lane = threadIdx.x % 32, staged_row = threadIdx.x % GROUP / 32 * 16 + lane % 16;
#pragma unroll
    for (int pair = 0; pair < WIDTH / 16; ++pair) {  // of blocks of 8 columns
        const int piece = 2 * pair + lane / 16, swizzled = WIDTH == 64 ? piece ^ staged_row % 8 : piece ^ staged_row / 2 % 4;
        unsigned packed[4];
        ldmatrix(packed, strip + staged_row * (2 * WIDTH) + (swizzled << 4));
#pragma unroll
        for (int i = 0; i < 8; ++i) sums[column / 2 + 8 * pair + i] += to_float(reinterpret_cast<const T*>(packed)[i]);
    }
}
