// Elements that stay as narrow in registers as they are in memory: two 16-bit ones share a register.
//
// A Vector<__nv_bfloat16, 8> (vector.cuh) that lives for long takes 8 registers, not 4: the compiler takes elements apart as soon as they
// are loaded, or keeps the floats that it has made of them. Words it leaves alone, and `stay_packed` makes it forget the floats.
#pragma once
#include "opaque.cuh"
#include "pack.cuh"
#include "vector.cuh"

template <class T>
constexpr bool UPPER_HALF_OF_FLOAT = false;
template <>
constexpr bool UPPER_HALF_OF_FLOAT<__nv_bfloat16> = true;

// N elements of T, on a multiple of their size: a whole number of 32-bit words, or one element.
template <class T, int N>
struct alignas(N * sizeof(T)) Packed {
    static_assert(N * sizeof(T) % 4 == 0, "a whole number of words");
    unsigned word[N * sizeof(T) / 4];

    // Element i as a float.
    __device__ __forceinline__ float operator[](int i) const {
        if constexpr (sizeof(T) == 4) return __uint_as_float(word[i]);
        else if constexpr (UPPER_HALF_OF_FLOAT<T>) return __uint_as_float(i % 2 ? word[i / 2] & 0xffff0000u : word[i / 2] << 16);
        else return __half2float(__ushort_as_half(static_cast<unsigned short>(word[i / 2] >> 16 * (i % 2))));
    }

    // Elements i and i + 1, i even, rounded.
    __device__ __forceinline__ void set(int i, float low, float high) {
        if constexpr (sizeof(T) == 4) word[i] = __float_as_uint(low), word[i + 1] = __float_as_uint(high);
        else word[i / 2] = pack_pair<T>(low, high);
    }
};

// A single element is what it is.
template <class T>
struct Packed<T, 1> {
    T element;
    __device__ __forceinline__ float operator[](int) const { return to_float(element); }
    __device__ __forceinline__ void set(int, float value, float) { element = from_float<T>(value); }
};

// From here on the compiler knows of these elements no more than the words.
template <class T, int N, int VECTORS>
__device__ __forceinline__ void stay_packed(Packed<T, N> (&vectors)[VECTORS]) {
    if constexpr (N > 1) {
#pragma unroll
        for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
            for (int i = 0; i < N * static_cast<int>(sizeof(T)) / 4; ++i) vectors[k].word[i] = opaque(vectors[k].word[i]);
        }
    }
}

// `source[0] .. source[cols-1]`, this thread's share of it: vectors THREADS * N elements apart, from `first` on. `otherwise` where there is
// no source, 0 beyond the end.
template <int THREADS, class T, int VECTORS, int N>
__device__ __forceinline__ void load_packed(const T* source, Packed<T, N> (&share)[VECTORS], int cols, int first, float otherwise) {
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        const int col = first + k * THREADS * N;
        const float value = col < cols ? otherwise : 0.0f;
#pragma unroll
        for (int j = 0; j < N; j += 2) share[k].set(j, value, value);
        if (source != nullptr && col < cols) share[k] = *reinterpret_cast<const Packed<T, N>*>(source + col);
    }
}
