// The tokens of all sequences out of a cache, one sequence after the other, in the type of the queries: what attention over packed sequences reads.
//   Idea      Attention over a prompt multiplies each key with hundreds of queries, so a copy of the keys costs it little, and the fastest kernel
//             there is can be used as it is. Scales are multiplied in on the way.
//   Predicts  The cache read once and written once: for a chunk of 512 queries and 32768 tokens some 12% of the attention itself.
//   Wastes    That copy, and room for it.
#include "cache.cuh"
#include "warp.cuh"

struct Gathered {
    long long page, head, token, scale_page, scale_head;  // strides of the cache (pages, kv_heads, page_size, head_dim) and its scales
    int batch, kv_heads, head_dim, page_size, max_pages, room;
};
constexpr int MARGIN = 512;  // rows of zeros behind the last token: a tile that begins before the end reads on beyond it

// packed (kv_heads, room, head_dim); ends (batch + 1): sequence b has the rows ends[b] to ends[b + 1] - 1. Launch with a grid of
// (ceil(longest / 8), kv_heads, batch + 1) and 8 warps, a token each; the last z writes the zeros.
template <class T, class C>
__global__ void cache_gather(const C* cache, const float* scales, const int* ends, const int* block_table, T* packed, Gathered sizes) {
    const int row = blockIdx.x * 8 + warp_id(), head = blockIdx.y, batch = blockIdx.z;
    const bool is_margin = batch == sizes.batch;
    const int first = ends[batch], end = is_margin ? min(first + MARGIN, sizes.room) : min(ends[batch + 1], sizes.room);
    if (first + row >= end) return;
    T* to = packed + (static_cast<long long>(head) * sizes.room + first + row) * sizes.head_dim;
    if (is_margin) {
        for (int d = lane_id(); d < sizes.head_dim; d += 32) to[d] = from_float<T>(0.0f);
        return;
    }
    const long long page = block_table ? block_table[static_cast<long long>(batch) * sizes.max_pages + row / sizes.page_size] : batch;
    const int offset = block_table ? row % sizes.page_size : row;
    const C* from = cache + page * sizes.page + head * sizes.head + offset * sizes.token;
    const float scale = scales ? scales[page * sizes.scale_page + head * sizes.scale_head + offset] : 1.0f;
    for (int d = lane_id(); d < sizes.head_dim; d += 32) to[d] = from_float<T>(to_float(from[d]) * scale);
}
