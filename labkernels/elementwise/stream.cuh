// Rows of vectors: stores that tell the caches to keep nothing, and where a vector stands in a matrix.
#pragma once
#include "vector.cuh"

// store_vector for what nobody reads soon: the line is the first that the caches give up.
template <int N, class T>
__device__ void store_streamed(T* target, const float (&values)[N]) {
    if constexpr (N * sizeof(T) == 16) {
        uint4 raw;
        Vector<T, N>& vector = reinterpret_cast<Vector<T, N>&>(raw);
#pragma unroll
        for (int i = 0; i < N; ++i) vector.element[i] = from_float<T>(values[i]);
        __stcs(reinterpret_cast<uint4*>(target), raw);
    } else {
        store_vector(target, values);
    }
}

// Where vector number `index` of a (rows, cols) matrix stands. `row_vectors` is how many a row has.
struct Place {
    long long row;
    long long col;
};

template <int WIDTH>
__device__ Place place_of(long long index, long long vectors, int row_vectors) {
    if (vectors == row_vectors) return {0, index * WIDTH};  // one row: nothing to divide
    const unsigned row = static_cast<unsigned>(index) / static_cast<unsigned>(row_vectors);
    return {row, (index - static_cast<long long>(row) * row_vectors) * WIDTH};
}
