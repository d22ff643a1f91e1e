// Bias, RoPE and the write into a KV cache of 8 bits, v3: bytes. LANES lanes hold a head of a token, two vectors each, and HEADS heads in all.
//   Idea      A number of 8 bits is a share of the largest of its head, so none can be written before all have been seen. A few lanes have a
//             whole head between them, in registers and turned already, as in v2: the largest is log2(LANES) shuffles away. So a cache of 8
//             bits takes one launch, too, and what rope would have written for cache_append to read is never in memory. The bits are those
//             that the two write: keys are rounded to T before they become bytes. Launched early, it stands ready when the projection ends.
//   Predicts  Of one token of 32 + 8 + 8 heads of 64 the 2 us of a launch, for rope's, cache_append's and the positions'; of 8192 tokens 93 MB for
//             176, 23 us of an H200 for 44. A token of Llama-3.2-1B behind 8192 others takes 111 launches for 169: 0.88 ms for 0.97, no more than
//             with 16 bits (0.89).
//   Measured  data/measured/h200/qkv_rope_cache.csv, heads of 64: 3.6 us for 1 token and for 16, 3.8 for 64; of 8192 31.3 us, 70% of the limit, and
//             torch.compile's 169 us. While it was made, in a graph: 2.1 us for 5.5 of a token, 33 for 66 of 8192. engine.csv: a token behind
//             8192 others in 98 launches, with 16 bits 82, 0.892 ms; a step of 64 such sequences 3.65 ms for 5.10 ms. While it was tuned, in turns, 2
//             heads a thread for 3 took 5% less of 8192 tokens, and as much of up to 1024: that is still to be had.
//   Wastes    A lane stores 8 bytes at a time, 4 lanes a sector; a scale is 4 bytes of a sector. The trip of the projection, which 16 bits do
//             without (llm/inference/decode/qkv.cu): a tile there has 8 pairs of a head, and the largest may be in another's.
#include "../kvcache/append.cuh"
#include "fence.cuh"
#include "rope.cuh"

// Where a token's scales go: (pages, kv_heads, page_size), any strides but the last, which is 1.
struct ScaleLayout {
    long long page, head;
};

// As qkv_cache_vectors, with vectors of WIDTH elements in the cache as in qkv; head_dim and what is turned of it are multiples of 2 * WIDTH, and
// 2 * WIDTH * LANES is head_dim or more. Launch with one dimension of whole warps, LANES threads for each token and every HEADS of its heads.
template <class T, class C, int WIDTH, int LANES, int HEADS, bool INTERLEAVED>
__global__ void
    qkv_cache_bytes(const T* qkv, const T* bias, T* q_out, C* k_cache, C* v_cache, const float* angles, const void* positions, const long long* slots,
                    long long tokens, int heads, int kv_heads, int pairs, int head_dim, int angle_rows, long long qkv_row, long long all_slots,
                    CacheLayout k_at, CacheLayout v_at, Positions layout, float* k_scale, float* v_scale, ScaleLayout ks_at, ScaleLayout vs_at) {
    constexpr float LARGEST = Stored<C>::LARGEST;
    const int all_heads = heads + 2 * kv_heads, shares = (all_heads + HEADS - 1) / HEADS, lane = threadIdx.x % LANES;
    const unsigned unit = blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES, of_token = unit / shares;
    const int share = unit - of_token * shares;
    const bool inside = of_token < tokens && lane < head_dim / (2 * WIDTH);
    const long long token = of_token < tokens ? of_token : tokens - 1;  // nobody leaves: a warp's lanes all shuffle
    const int part = min(lane, head_dim / (2 * WIDTH) - 1);             // lanes beyond a head see what the last of it sees
    const bool turns = part < pairs / WIDTH;                            // else two neighbouring vectors of what is not turned
    const int first = turns ? part * WIDTH : 2 * part * WIDTH, second = first + (turns ? pairs : WIDTH);
    const T* row = qkv + token * qkv_row;

    grid_dependency_wait();
    grid_dependency_launch();  // not before: attention reads lengths before it waits (llm/inference/decode/attend.cu)
    Raw<T, WIDTH> x[HEADS], y[HEADS];
#pragma unroll
    for (int i = 0; i < HEADS; ++i) {
        const int head = min(share + i * shares, all_heads - 1);
        x[i] = read_raw<WIDTH>(row + head * head_dim + first);
        y[i] = read_raw<WIDTH>(row + head * head_dim + second);
    }
    const long long slot = slots[token];
    const bool stored = slot >= 0 && slot < all_slots;
    const unsigned place = stored ? slot : 0, page = place / k_at.page_size, offset = place - page * k_at.page_size;
    float cosine[WIDTH], sine[WIDTH];
    turns_of_part<INTERLEAVED>(angles, angle_rows, pairs, position_of(positions, layout, 0, token), turns ? part : 0, 1.0f, cosine, sine);
#pragma unroll
    for (int i = 0; i < HEADS; ++i) {
        const int head = share + i * shares, source = min(head, all_heads - 1) * head_dim;
        float low[WIDTH], high[WIDTH];
        unpack<T, WIDTH>(x[i], low);
        unpack<T, WIDTH>(y[i], high);
        add_bias(bias, source + first, low);
        add_bias(bias, source + second, high);
        if (turns && head < heads + kv_heads) rotate<INTERLEAVED>(low, high, cosine, sine);
        if (inside && head < heads) {
            T* const target = q_out + (token * heads + head) * head_dim;
            store_vector(target + first, low);
            store_vector(target + second, high);
        }
        if (!__any_sync(FULL_WARP, head >= heads)) continue;

        float largest = 0.0f;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            low[j] = to_float(from_float<T>(low[j]));
            high[j] = to_float(from_float<T>(high[j]));
            largest = fmaxf(largest, fmaxf(fabsf(low[j]), fabsf(high[j])));
        }
#pragma unroll
        for (int distance = LANES / 2; distance > 0; distance /= 2) largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, distance));
        if (!inside || !stored || head < heads || head >= all_heads) continue;
        const bool value = head >= heads + kv_heads;
        const int kv_head = head - heads - (value ? kv_heads : 0);
        const CacheLayout at = value ? v_at : k_at;
        C* const target = (value ? v_cache : k_cache) + page * at.page + kv_head * at.head + offset * at.seq;
        const float factor = largest > 0.0f ? LARGEST / largest : 0.0f;
        StoredVector<C, WIDTH> bytes[2];
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            bytes[0].element[j] = Stored<C>::of(low[j] * factor);
            bytes[1].element[j] = Stored<C>::of(high[j] * factor);
        }
        *reinterpret_cast<StoredVector<C, WIDTH>*>(target + first) = bytes[0];
        *reinterpret_cast<StoredVector<C, WIDTH>*>(target + second) = bytes[1];
        if (lane > 0) continue;
        const ScaleLayout scales = value ? vs_at : ks_at;
        (value ? v_scale : k_scale)[page * scales.page + kv_head * scales.head + offset] = largest / LARGEST;
    }
}
