// A score with its scale and mask, as both versions of the scaled masked softmax read it.
#pragma once
#include <math_constants.h>

#include "vector.cuh"

constexpr float LOG2_E = 1.4426950408889634f;

struct RowStrides {
    long long batch, head, query;
};

// kind 0: no mask; 1: bytes, where 0 hides; 2: of the scores' type, added; 3: float32, added. Strides of 0 repeat the mask.
// whole: its keys are neighbours, and vectors of them lie on multiples of their size.
struct MaskLayout {
    long long batch, head, query, key;
    int kind, whole;
};

struct ScoreRow {
    long long batch;
    int head, query;
    long long mask;  // where its mask begins
    int end;         // the first key that a causal mask hides
};

__device__ inline ScoreRow score_row(long long row, int heads, int queries, int keys, int causal, MaskLayout at) {
    ScoreRow found;
    const unsigned matrix = static_cast<unsigned>(row) / queries;
    found.query = static_cast<unsigned>(row) - matrix * queries;
    found.batch = matrix / heads;
    found.head = matrix - found.batch * heads;
    found.mask = found.batch * at.batch + found.head * at.head + found.query * at.query;
    found.end = causal ? min(keys, found.query + keys - queries + 1) : keys;
    return found;
}

template <class T>
__device__ float masked_score(float x, const void* mask, MaskLayout layout, ScoreRow row, int key, float scale) {
    if (key >= row.end) return -CUDART_INF_F;
    const long long at = row.mask + key * layout.key;
    if (layout.kind == 1) return static_cast<const unsigned char*>(mask)[at] ? x * scale : -CUDART_INF_F;
    if (layout.kind == 2) return x * scale + to_float(static_cast<const T*>(mask)[at]);
    if (layout.kind == 3) return x * scale + static_cast<const float*>(mask)[at];
    return x * scale;
}

// The scores of N neighbouring keys, from `key` on, all within the row, times log2(e), which `scale` has in it: then e^score is one instruction.
// What a mask says of them is read at once if it can be.
template <class T, int N>
__device__ __forceinline__ void masked_scores(float (&x)[N], const void* mask, const MaskLayout& layout, const ScoreRow& row, int key, float scale) {
    const long long at = row.mask + key * layout.key;
    if (layout.kind == 0) {
#pragma unroll
        for (int j = 0; j < N; ++j) x[j] *= scale;
    } else if (layout.kind == 1) {
        const unsigned char* bytes = static_cast<const unsigned char*>(mask) + at;
        Vector<unsigned char, N> shown;
        if (layout.whole) {
            shown = *reinterpret_cast<const Vector<unsigned char, N>*>(bytes);
        } else {
#pragma unroll
            for (int j = 0; j < N; ++j) shown.element[j] = bytes[j * layout.key];
        }
#pragma unroll
        for (int j = 0; j < N; ++j) x[j] = shown.element[j] ? x[j] * scale : -CUDART_INF_F;
    } else {
        float add[N];
        if (layout.whole && layout.kind == 2) {
            load_vector(static_cast<const T*>(mask) + at, add);
        } else if (layout.whole) {
            load_vector(static_cast<const float*>(mask) + at, add);
        } else {
#pragma unroll
            for (int j = 0; j < N; ++j) {
                const long long next = at + j * layout.key;
                add[j] = layout.kind == 2 ? to_float(static_cast<const T*>(mask)[next]) : static_cast<const float*>(mask)[next];
            }
        }
#pragma unroll
        for (int j = 0; j < N; ++j) x[j] = fmaf(add[j], LOG2_E, x[j] * scale);
    }
    if (key + N > row.end) {
#pragma unroll
        for (int j = 0; j < N; ++j) x[j] = key + j < row.end ? x[j] : -CUDART_INF_F;
    }
}
