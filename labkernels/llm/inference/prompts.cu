// Prompts: RoPE of queries and keys where the projection left them, and keys and values into the cache's pages. A thread takes the same pairs
// of HEADS heads of a token.
//   Idea      qkv_rope_cache writes queries elsewhere, and keys into the pages alone, from where attention over packed sequences cannot read them.
//             Here all three stay in the projection's rows, which attention reads as they lie, and the cache gets its copy on the way.
//   Predicts  q, k, v read, q and k written back, k and v into the cache: of 8192 tokens of 32 + 8 + 8 heads of 64 109 MB, 27 us of an H200.
//   Measured  Not by itself. What it takes the place of, rope and cache_append, took 24 and 34 us there, qkv_rope_cache and the pages' packing 31 and 42.
//   Wastes    The trip of the queries: the projection's epilogue could turn them.
#include "../../rope/rope.cuh"

// qkv (tokens, (heads + 2 kv_heads) 2 pairs), rows qkv_row apart; a slot that the cache does not have is skipped. Vectors of WIDTH elements make
// up pairs; addresses and strides are multiples of WIDTH, and angles lie on 16 bytes. A block is (pairs / WIDTH, lanes, tokens) threads; blockIdx.y
// counts slices of HEADS * lanes heads.
template <class T, int WIDTH, int HEADS>
__global__ void turn_in_place(T* qkv, T* k_cache, T* v_cache, const float* angles, const void* positions, const long long* slots, long long tokens,
                              int heads, int kv_heads, int pairs, int angle_rows, long long qkv_row, long long all_slots, CacheLayout k_at,
                              CacheLayout v_at, Positions layout) {
    const long long token = blockIdx.x * (long long)blockDim.z + threadIdx.z;
    if (token >= tokens) return;
    const int first = threadIdx.x * WIDTH, lane = threadIdx.y + blockIdx.y * HEADS * blockDim.y, all_heads = heads + 2 * kv_heads;
    T* row = qkv + token * qkv_row + first;

    Raw<T, WIDTH> x[HEADS], y[HEADS];
#pragma unroll
    for (int i = 0; i < HEADS; ++i) {
        const int head = lane + i * blockDim.y;
        if (head >= all_heads) continue;
        x[i] = read_raw<WIDTH>(row + head * 2 * pairs);
        y[i] = read_raw<WIDTH>(row + head * 2 * pairs + pairs);
    }
    const long long slot = slots[token];
    const bool stored = slot >= 0 && slot < all_slots;
    const long long page = stored ? slot / k_at.page_size : 0, offset = stored ? slot - page * k_at.page_size : 0;
    float cosine[WIDTH], sine[WIDTH];
    turns_of_part<false>(angles, angle_rows, pairs, position_of(positions, layout, 0, token), threadIdx.x, 1.0f, cosine, sine);
#pragma unroll
    for (int i = 0; i < HEADS; ++i) {
        const int head = lane + i * blockDim.y, kv_head = head - heads, value_head = kv_head - kv_heads;
        if (head >= all_heads) continue;
        float low[WIDTH], high[WIDTH];
        unpack<T, WIDTH>(x[i], low);
        unpack<T, WIDTH>(y[i], high);
        if (value_head < 0) {
            rotate<false>(low, high, cosine, sine);
            store_vector(row + head * 2 * pairs, low);
            store_vector(row + head * 2 * pairs + pairs, high);
        }
        if (kv_head < 0 || !stored) continue;
        T* target = value_head < 0 ? k_cache + page * k_at.page + kv_head * k_at.head + offset * k_at.seq
                                   : v_cache + page * v_at.page + value_head * v_at.head + offset * v_at.seq;
        store_vector(target + first, low);
        store_vector(target + pairs + first, high);
    }
}
