// A row of logits where it lies, or a block's part of it: read token by token, or several neighbours at once.
#pragma once
#include "draw.cuh"
#include "vector.cuh"

template <class T>
struct RowInMemory {
    const T* logits;
    const unsigned* before;  // a bit for each token that has been before, or null
    const bool* mask;        // the same as a byte each, or null
    float penalty;

    __device__ bool seen(int token) const { return (before && before[token / 32] >> token % 32 & 1) || (mask && mask[token]); }
    __device__ float operator[](int token) const { return penalised(to_float(logits[token]), seen(token), penalty); }

    // Tokens `token` .. `token` + WIDTH - 1; the first lies on a multiple of WIDTH.
    template <int WIDTH>
    __device__ void load(int token, float (&values)[WIDTH]) const {
        load_vector(logits + token, values);
        if (before || mask) {
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) values[j] = penalised(values[j], seen(token + j), penalty);
        } else {
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) values[j] = penalised(values[j], false, penalty);
        }
    }
};
