// Appending to a cache: each new token's keys and values go to its slot, quantised on the way if the cache is. One warp a token and head.
//   Idea      A slot is page * page_size + offset, and a contiguous cache one of pages as long as sequences may become: one kernel for all. The
//             largest element of a row is one reduction of a warp, so that the row is read once and written once.
//   Predicts  Bytes alone at a prompt's thousands of tokens; at a decode step's few the launch.
//   Wastes    The launch, in a decode step: what makes keys (the rotary embedding) can write them here itself.
#include "append.cuh"
#include "vector.cuh"

struct Appended {
    long long k_token, k_head, v_token, v_head;                                      // strides of the new k and v (tokens, kv_heads, head_dim)
    long long k_page, k_page_head, k_page_token, v_page, v_page_head, v_page_token;  // of the caches (pages, kv_heads, page_size, head_dim)
    long long ks_page, ks_head, vs_page, vs_head;                                    // of their scales (pages, kv_heads, page_size)
    long long all_slots;
    int tokens, kv_heads, head_dim, page_size;
};

// Launch with ceil(2 * tokens * kv_heads / warps) blocks. 32 * VALUES must be at least head_dim. A slot that the cache does not have is skipped, as -1 is.
template <class T, class C, int VALUES, bool ALIGNED>
__global__ void cache_append(const T* k, const T* v, C* k_cache, C* v_cache, float* k_scale, float* v_scale, const long long* slots, Appended sizes) {
    const long long row = blockIdx.x * (blockDim.x / 32LL) + warp_id();
    const int head = row % sizes.kv_heads;
    const bool is_value = row / sizes.kv_heads >= sizes.tokens;
    const long long token = row / sizes.kv_heads - (is_value ? sizes.tokens : 0);
    if (token >= sizes.tokens) return;
    const long long slot = slots[token];
    if (slot < 0 || slot >= sizes.all_slots) return;
    const long long page = slot / sizes.page_size, offset = slot % sizes.page_size;
    const T* from = is_value ? v + token * sizes.v_token + head * sizes.v_head : k + token * sizes.k_token + head * sizes.k_head;
    C* to = is_value ? v_cache + page * sizes.v_page + head * sizes.v_page_head + offset * sizes.v_page_token
                     : k_cache + page * sizes.k_page + head * sizes.k_page_head + offset * sizes.k_page_token;
    float* scale = is_value ? v_scale + page * sizes.vs_page + head * sizes.vs_head + offset
                            : k_scale + page * sizes.ks_page + head * sizes.ks_head + offset;

    const int first = lane_id() * VALUES;
    float values[VALUES];
    if (ALIGNED && first < sizes.head_dim) {
        load_vector(from + first, values);
    } else {
#pragma unroll
        for (int i = 0; i < VALUES; ++i) values[i] = !ALIGNED && first + i < sizes.head_dim ? to_float(from[first + i]) : 0.0f;
    }
    store_row<ALIGNED>(to, scale, values, sizes.head_dim);
}
