// What the kernels of the KV cache share: where a token of a sequence lies (layout.py), and what a stored element is worth.
#pragma once
#include <cuda_fp8.h>

#include "convert.cuh"

__device__ inline float to_float(signed char value) { return static_cast<float>(value); }
__device__ inline float to_float(__nv_fp8_e4m3 value) { return static_cast<float>(value); }

struct Problem {
    long long q_batch, q_head, q_query;                           // strides of q (batch, heads, queries, head_dim)
    long long k_page, k_head, k_token, v_page, v_head, v_token;   // of k and v (pages, kv_heads, page_size, head_dim)
    long long ks_page, ks_head, vs_page, vs_head;                 // of their scales (pages, kv_heads, page_size)
    int batch, kv_heads, group, queries;                          // `group` query heads share a head of k and v
    int head_dim, page_size, page_shift, max_pages;               // page_size is 2^page_shift, or page_shift is -1; max_pages: between the table's rows
    float scale;                                                  // in units of log 2: LOG2_OF_E is in it

    __device__ int rows() const { return group * queries; }       // query tokens that share one head of k and v
    // Row r of kv head h of sequence b is query r % queries of head h * group + r / queries; so they follow each other in the output.
    template <class T>
    __device__ const T* query(const T* q, int b, int h, int row) const {
        return q + b * q_batch + (h * group + row / queries) * q_head + row % queries * q_query;
    }
    __device__ long long out_row(int b, int h, int row) const {
        return (static_cast<long long>(b) * kv_heads + h) * rows() + row;
    }
    // The keys that a row sees, from 0: the last query stands at the sequence's last token.
    __device__ int visible(int row, int length) const { return length - queries + 1 + row % queries; }
};

// One head of one sequence.
struct Sequence {
    const int* pages;  // its row of the block table; null if the cache is contiguous, and the sequence its own page
    int batch, head, page_size, page_shift;

    __device__ Sequence(const int* block_table, const Problem& problem, int batch, int head)
        : pages(block_table ? block_table + static_cast<long long>(batch) * problem.max_pages : nullptr),
          batch(batch), head(head), page_size(problem.page_size), page_shift(problem.page_shift) {}
    __device__ int index(int token) const { return page_shift >= 0 ? token >> page_shift : token / page_size; }  // a division costs 25 instructions
    __device__ long long page(int token) const { return pages ? pages[index(token)] : batch; }
    __device__ int offset(int token) const { return pages ? token - index(token) * page_size : token; }

    // Of k or v with these strides, and of their scales.
    __device__ long long element(int token, long long page_stride, long long head_stride, long long token_stride) const {
        return page(token) * page_stride + head * head_stride + offset(token) * token_stride;
    }
    __device__ long long scale(int token, long long page_stride, long long head_stride) const {
        return page(token) * page_stride + head * head_stride + offset(token);
    }
};
