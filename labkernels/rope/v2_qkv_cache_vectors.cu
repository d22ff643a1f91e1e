// Bias, RoPE and the write into the KV cache, v2: vectors. A thread takes the same pairs of HEADS heads of a token, two vectors of each.
//   Idea      As v2 of rope: 16 bytes of a head's first half, 16 of its second, sines once for HEADS heads. The heads of v go the same way and
//             are not turned. Where a token's row of the cache begins is one division a thread.
//   Predicts  The time of a copy of q, k and v; of few tokens the time of a launch.
//   Measured  data/measured/h200/qkv_rope_cache.csv: 16384 tokens of 32 + 8 + 8 heads of 128 444 -> 103 us, 92% of the limit (torch.compile 448);
//             with a bias 106 us (526); one token 3.4 us (6.8; PyTorch 70).
//   Wastes    The trip: an epilogue of the projection could do all this with what it has in registers.
#include "rope.cuh"

// As qkv_cache_naive; vectors of WIDTH elements make up head_dim and half of what is turned, addresses and strides are multiples of WIDTH, and
// angles lie on 16 bytes. A block is (pairs / WIDTH, lanes, tokens) threads, with heads as in rope_vectors.
template <class T, int WIDTH, int HEADS, bool INTERLEAVED>
__global__ void qkv_cache_vectors(const T* qkv, const T* bias, T* q_out, T* k_cache, T* v_cache, const float* angles, const void* positions,
                                  const long long* slots, long long tokens, int heads, int kv_heads, int pairs, int head_dim,
                                  int angle_rows, long long qkv_row, long long all_slots, CacheLayout k_at, CacheLayout v_at,
                                  Positions layout) {
    const long long token = blockIdx.x * (long long)blockDim.z + threadIdx.z;
    if (token >= tokens) return;
    const int first = threadIdx.x * WIDTH, lane = threadIdx.y + blockIdx.y * HEADS * blockDim.y;
    const T* row = qkv + token * qkv_row;

    Raw<T, WIDTH> x[HEADS], y[HEADS];
#pragma unroll
    for (int i = 0; i < HEADS; ++i) {
        const int head = min(static_cast<int>(lane + i * blockDim.y), heads + 2 * kv_heads - 1);  // no branch before the next load
        x[i] = read_raw<WIDTH>(row + head * head_dim + first);
        y[i] = read_raw<WIDTH>(row + head * head_dim + pairs + first);
    }
    const long long slot = slots[token];
    const bool stored = slot >= 0 && slot < all_slots;
    const long long page = stored ? slot / k_at.page_size : 0, offset = stored ? slot - page * k_at.page_size : 0;
    float cosine[WIDTH], sine[WIDTH];
    turns_of_part<INTERLEAVED>(angles, angle_rows, pairs, position_of(positions, layout, 0, token), threadIdx.x, 1.0f, cosine, sine);
#pragma unroll
    for (int i = 0; i < HEADS; ++i) {
        const int head = lane + i * blockDim.y;
        if (head >= heads + 2 * kv_heads || head >= heads && !stored) continue;
        T* target = q_out + (token * heads + head) * head_dim;
        if (head >= heads + kv_heads) target = v_cache + page * v_at.page + (head - heads - kv_heads) * v_at.head + offset * v_at.seq;
        else if (head >= heads) target = k_cache + page * k_at.page + (head - heads) * k_at.head + offset * k_at.seq;
        float low[WIDTH], high[WIDTH];
        unpack<T, WIDTH>(x[i], low);
        unpack<T, WIDTH>(y[i], high);
        add_bias(bias, head * head_dim + first, low);
        add_bias(bias, head * head_dim + pairs + first, high);
        if (head < heads + kv_heads) rotate<INTERLEAVED>(low, high, cosine, sine);
        store_vector(target + first, low);
        store_vector(target + pairs + first, high);
        for (int rest = 2 * pairs + first; rest < head_dim; rest += pairs) {
            load_vector(row + head * head_dim + rest, low);
            add_bias(bias, head * head_dim + rest, low);
            store_vector(target + rest, low);
        }
    }
}
