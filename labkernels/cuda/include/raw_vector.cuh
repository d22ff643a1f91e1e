// A vector of elements as it lies in memory, in as few registers as its bytes take. A struct of 16-bit elements would take a register for
// each, and the compiler would take it apart, and so wait for it, right behind its load. Loaded like this, many vectors can be on their way.
#pragma once
#include "opaque.cuh"
#include "vector.cuh"

template <int BYTES> struct Words;
template <> struct Words<16> { using type = uint4; };
template <> struct Words<8> { using type = uint2; };
template <> struct Words<4> { using type = unsigned; };
template <> struct Words<2> { using type = unsigned short; };

template <class T, int N>
using Raw = typename Words<N * sizeof(T)>::type;

// The N elements at `source`, which must be a multiple of N elements from the start of an aligned tensor.
template <int N, class T>
__device__ __forceinline__ Raw<T, N> read_raw(const T* source) { return *reinterpret_cast<const Raw<T, N>*>(source); }

__device__ __forceinline__ uint4 opaque(uint4 raw) {
    return make_uint4(opaque(static_cast<int>(raw.x)), opaque(static_cast<int>(raw.y)), opaque(static_cast<int>(raw.z)), opaque(static_cast<int>(raw.w)));
}
template <class Word>
__device__ __forceinline__ Word opaque(Word raw) { return raw; }

// Its elements as floats, taken apart here and not earlier.
template <class T, int N>
__device__ __forceinline__ void unpack(Raw<T, N> raw, float (&values)[N]) {
    raw = opaque(raw);
    const Vector<T, N>& vector = reinterpret_cast<const Vector<T, N>&>(raw);
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = to_float(vector.element[i]);
}
