// Bias, RoPE and the write into the KV cache, v1: naive. One thread takes one pair of one head of the packed projection [q | k | v].
//   Idea      Between the projection and attention stand four small operations: add the bias, turn q, turn k, copy k and v to where the cache
//             wants them. Each alone reads and writes what the one before has written. Here a number is read once and written once.
//   Predicts  A fifth of the bytes that PyTorch's operations move, and one launch of about 3 us where there were a dozen.
//   Measured  data/measured/h200/qkv_rope_cache.csv: 16384 tokens of 32 + 8 + 8 heads of 128 in 444 us, 21% of the limit: as long as
//             torch.compile's (448).
//   Wastes    2 bytes a lane in 16 bits; every head works out its token's sines again.
#include "rope.cuh"

// qkv (tokens, (heads + 2 kv_heads) head_dim), rows qkv_row apart; bias one a column, or null; positions (tokens,); slots (tokens,) int64,
// page * page_size + offset, negative: not stored. q_out (tokens, heads, head_dim) contiguous. pairs * 2 elements of a head are turned.
template <class T>
__global__ void qkv_cache_naive(const T* qkv, const T* bias, T* q_out, T* k_cache, T* v_cache, const float* angles, const void* positions,
                                const long long* slots, long long tokens, int heads, int kv_heads, int pairs, int head_dim, int angle_rows,
                                bool interleaved, long long qkv_row, long long all_slots, CacheLayout k_at, CacheLayout v_at,
                                Positions layout) {
    const int all_heads = heads + 2 * kv_heads, units = head_dim - pairs;  // pairs, then single elements
    long long index = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (index >= tokens * all_heads * units) return;
    const int unit = index % units;
    index /= units;
    int head = index % all_heads;
    const long long token = index / all_heads;
    const bool single = unit >= pairs;
    const int first = single ? pairs + unit : interleaved ? 2 * unit : unit;
    const int second = single ? first : interleaved ? first + 1 : first + pairs;

    const T* source = qkv + token * qkv_row + head * head_dim;
    float x = to_float(source[first]), y = to_float(source[second]);
    if (bias) {
        x += to_float(bias[head * head_dim + first]);
        y += to_float(bias[head * head_dim + second]);
    }
    if (!single && head < heads + kv_heads) {
        const Turn turn = turn_of(angles, angle_rows, pairs, position_of(positions, layout, 0, token), unit, 1.0f);
        const float turned = x * turn.cosine - y * turn.sine;
        y = y * turn.cosine + x * turn.sine;
        x = turned;
    }
    T* target = q_out + (token * heads + head) * head_dim;
    if (head >= heads) {
        head -= heads;
        const long long slot = slots[token];
        if (slot < 0 || slot >= all_slots) return;
        const CacheLayout at = head < kv_heads ? k_at : v_at;
        target = (head < kv_heads ? k_cache : v_cache) + slot / at.page_size * at.page + head % kv_heads * at.head + slot % at.page_size * at.seq;
    }
    target[first] = from_float<T>(x);
    target[second] = from_float<T>(y);
}
