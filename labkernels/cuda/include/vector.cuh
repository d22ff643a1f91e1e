// Several neighbouring elements in one memory instruction: 16 bytes a lane is the widest that a GPU has.
#pragma once
#include "convert.cuh"

// N elements that lie on a multiple of their size, so that the compiler may move them at once.
template <class T, int N>
struct alignas(N * sizeof(T)) Vector {
    T element[N];
};

// Reads `source[0] .. source[N-1]` as floats. `source` must be a multiple of N elements from the start of an aligned tensor.
template <int N, class T>
__device__ void load_vector(const T* source, float (&values)[N]) {
    const Vector<T, N> vector = *reinterpret_cast<const Vector<T, N>*>(source);
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = to_float(vector.element[i]);
}

// Writes N floats to `target[0] .. target[N-1]`, rounded to T; aligned as for load_vector.
template <int N, class T>
__device__ void store_vector(T* target, const float (&values)[N]) {
    Vector<T, N> vector;
#pragma unroll
    for (int i = 0; i < N; ++i) vector.element[i] = from_float<T>(values[i]);
    *reinterpret_cast<Vector<T, N>*>(target) = vector;
}
