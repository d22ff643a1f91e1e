// Which keys a query sees: causal and sliding windows, masks, and the bounds of packed sequences. Shared by every attention kernel from
// v4 on, forward and backward; visible.py is the side of it that launches.
//
//   Bounds           bounds_of(cu_seqlens_q, cu_seqlens_k, batch, seq_len, kv_len): where a sequence lies, and how long it is. With null
//                    pointers the sequences are not packed: each has seq_len queries and kv_len keys, and begins at 0.
//   Window           Window window(seq_len, kv_len, left, right): query i sees key j when
//                    i + offset - left <= j <= i + offset + right, offset = kv_len - seq_len (the last query stands at the last key).
//                    UNLIMITED on a side is no bound there; causal is right = 0.
//     .sees(query, key)                            both inside of the sequence, and the window lets them meet
//     .first_key(query) .end_key(query)            a query sees the keys first <= key < end (none if end <= first)
//     .first_query(key) .end_query(key)            the other way round, for a loop over queries
//     .keys<BLOCK_Q, BLOCK_K>(first_query)         Tiles {first, end}: of the tiles of BLOCK_K keys, those that some query among
//                                                  first_query .. first_query + BLOCK_Q - 1 sees; the rest need not be read
//     .queries<BLOCK_Q, BLOCK_K>(first_key)        the same for the tiles of queries that see some key of a tile
//     .hides<BLOCK_Q, BLOCK_K>(first_query, first_key)   must the scores of this tile be masked? False if every query of it (before
//                                                  seq_len) sees every key of it, as in most tiles. Queries past seq_len do not count.
//   Mask<MASK, T>    the mask operand of one head: Mask<MASK, T> mask(pointer, strides, batch, head). MASK is a MaskKind.
//     .apply(score, query, key)                    the score of a pair that the window shows. Scores are in units of log 2 (scale and
//                                                  LOG2_E already in them); hidden is -inf. Reads mask[query, key]: only for a
//                                                  pair that exists. MASK_NONE gives the score back.
//
// first_query given to a member is below seq_len, first_key below kv_len.
#pragma once
#include <math_constants.h>

#include "convert.cuh"

constexpr int UNLIMITED = 0x3fffffff;  // a side of a window without bound; far from overflow when an index is added
constexpr float LOG2_OF_E = 1.4426950408889634f;

// The least that a mask adds short of -inf. torch.finfo.min would overflow in units of log 2, and hide; like this a row of nothing else sees all
// keys alike, as PyTorch has it. Where lse is below LEAST_LSE a row is one of those: lse has no digits left to tell its probabilities from.
constexpr float LEAST_ADDED = -1e30f, LEAST_LSE = -1e29f;

// One of the packed sequences, or, where nothing is packed, all of what a batch index selects.
struct Bounds {
    int first_query, first_key;  // its first row in q and in k; add these, times the stride of a row, to the tensor's address
    int seq_len, kv_len;
};

__device__ inline Bounds bounds_of(const int* cu_seqlens_q, const int* cu_seqlens_k, int batch, int seq_len, int kv_len) {
    Bounds bounds = {0, 0, seq_len, kv_len};
    if (cu_seqlens_q != nullptr) {
        bounds.first_query = cu_seqlens_q[batch];
        bounds.seq_len = cu_seqlens_q[batch + 1] - bounds.first_query;
    }
    if (cu_seqlens_k != nullptr) {
        bounds.first_key = cu_seqlens_k[batch];
        bounds.kv_len = cu_seqlens_k[batch + 1] - bounds.first_key;
    }
    return bounds;
}

struct Tiles {
    int first, end;  // tile t holds the rows t * BLOCK .. t * BLOCK + BLOCK - 1; none if end <= first
};

struct Window {
    int seq_len, kv_len, left, right;

    __device__ Window(int seq_len, int kv_len, int left, int right) : seq_len(seq_len), kv_len(kv_len), left(left), right(right) {}

    __device__ int offset() const { return kv_len - seq_len; }

    __device__ int first_key(int query) const { return max(0, query + offset() - left); }
    __device__ int end_key(int query) const { return min(kv_len, query + offset() + right + 1); }
    __device__ int first_query(int key) const { return max(0, key - offset() - right); }
    __device__ int end_query(int key) const { return min(seq_len, key - offset() + left + 1); }

    __device__ bool sees(int query, int key) const { return query < seq_len && key >= first_key(query) && key < end_key(query); }

    // Windows move to the right from query to query, so the first query has the first key and the last query the last one.
    template <int BLOCK_Q, int BLOCK_K>
    __device__ Tiles keys(int first_query) const {
        const int first = first_key(first_query), end = end_key(last(first_query, BLOCK_Q, seq_len));
        return {first / BLOCK_K, end <= first ? 0 : (end + BLOCK_K - 1) / BLOCK_K};
    }
    template <int BLOCK_Q, int BLOCK_K>
    __device__ Tiles queries(int first_key) const {
        const int first = first_query(first_key), end = end_query(last(first_key, BLOCK_K, kv_len));
        return {first / BLOCK_Q, end <= first ? 0 : (end + BLOCK_Q - 1) / BLOCK_Q};
    }

    template <int BLOCK_Q, int BLOCK_K>
    __device__ bool hides(int first_query, int first_key) const {
        return first_key < this->first_key(last(first_query, BLOCK_Q, seq_len)) || first_key + BLOCK_K > end_key(first_query);
    }

private:
    __device__ static int last(int first, int count, int length) { return min(first + count, length) - 1; }
};

enum MaskKind : int { MASK_NONE, MASK_BOOL, MASK_ADDITIVE, MASK_ADDITIVE_FLOAT };  // bool; T, as q; float

struct MaskStrides {
    long long batch, head, query, key;  // in elements; 0 along an axis that is broadcast
};

template <int MASK, class T> struct MaskElement { using type = T; };
template <class T> struct MaskElement<MASK_BOOL, T> { using type = bool; };
template <class T> struct MaskElement<MASK_ADDITIVE_FLOAT, T> { using type = float; };

template <int MASK, class T>
struct Mask {
    using Element = typename MaskElement<MASK, T>::type;
    const Element* values;
    long long query_stride, key_stride;

    __device__ Mask(const void* mask, MaskStrides strides, int batch, int head)
        : values(static_cast<const Element*>(mask) + (batch * strides.batch + head * strides.head)),
          query_stride(strides.query), key_stride(strides.key) {}

    __device__ float apply(float score, int query, int key) const {
        const Element value = values[query * query_stride + key * key_stride];
        if constexpr (MASK == MASK_BOOL) return value ? score : -CUDART_INF_F;
        else {
            const float added = to_float(value);
            return score + (added == -CUDART_INF_F ? added : fmaxf(LOG2_OF_E * added, LEAST_ADDED));
        }
    }
};

template <class T>
struct Mask<MASK_NONE, T> {
    __device__ Mask(const void*, MaskStrides, int, int) {}
    __device__ float apply(float score, int, int) const { return score; }
};
