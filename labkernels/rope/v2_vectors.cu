// RoPE, v2: vectors. A thread turns the same pairs of HEADS heads of a token, 16 bytes of the head's first half and 16 of its second.
//   Idea      The angles depend on the position and the pair, not on the head: worked out once, or read once from a table, they stay in
//             registers for HEADS heads. Two vectors half a head apart hold whole pairs whichever way pairs are arranged: half-split, one
//             element of each; interleaved, neighbours within each. All 2 * HEADS loads are under way before the first sine is there, which
//             takes care: a branch between two loads, or 16-bit elements in a struct, and the compiler waits for the first before the second.
//   Predicts  The time of a copy of q and k: 32 sines a 512 bytes moved cost nothing beside them.
//   Measured  data/measured/h200/rope.csv: 4 x 4096 tokens, 32 and 8 heads of 128 in bfloat16, 397 -> 84.9 us, 94% of the limit (torch.compile
//             202); with a table of angles and positions 90.7 (118); in float32 165, 96% (200).
//   Wastes    The trip: q and k could be turned where the projection writes them (qkv_rope_cache does, for inference).
#include "rope.cuh"

// As rope_naive, but head_dim's stride is 1, and vectors of WIDTH elements make up head_dim and half of the 2 * pairs elements that are
// turned; all addresses and strides are multiples of WIDTH, angles lie on 16 bytes. A block is (pairs / WIDTH, lanes, tokens) threads: thread
// (part, lane, token) has the heads lane, lane + lanes, ... of its token, HEADS of them for each blockIdx.y.
template <class T, int WIDTH, int HEADS, bool INTERLEAVED>
__global__ void rope_vectors(const T* q, const T* k, T* q_out, T* k_out, const float* angles, const void* positions, int batch, int seq,
                             int q_heads, int k_heads, int pairs, int head_dim, int angle_rows, float sign, HeadStrides q_at,
                             HeadStrides k_at, HeadStrides q_out_at, HeadStrides k_out_at, Positions layout) {
    const unsigned token = blockIdx.x * blockDim.z + threadIdx.z;
    if (token >= static_cast<unsigned>(batch) * seq) return;
    const int b = token / seq, s = token - b * seq, first = threadIdx.x * WIDTH, lane = threadIdx.y + blockIdx.y * HEADS * blockDim.y;
    q += b * q_at.batch + s * q_at.seq;
    k += b * k_at.batch + s * k_at.seq - q_heads * k_at.head;  // so that k's heads count on from q's

    Raw<T, WIDTH> x[HEADS], y[HEADS];
#pragma unroll
    for (int i = 0; i < HEADS; ++i) {
        const int head = min(static_cast<int>(lane + i * blockDim.y), q_heads + k_heads - 1);  // no branch before the next load
        const T* source = (head < q_heads ? q + head * q_at.head : k + head * k_at.head) + first;
        x[i] = read_raw<WIDTH>(source);
        y[i] = read_raw<WIDTH>(source + pairs);
    }
    float cosine[WIDTH], sine[WIDTH];
    turns_of_part<INTERLEAVED>(angles, angle_rows, pairs, position_of(positions, layout, b, s), threadIdx.x, sign, cosine, sine);
    q_out += b * q_out_at.batch + s * q_out_at.seq;
    k_out += b * k_out_at.batch + s * k_out_at.seq - q_heads * k_out_at.head;
#pragma unroll
    for (int i = 0; i < HEADS; ++i) {
        const int head = lane + i * blockDim.y;
        if (head >= q_heads + k_heads) continue;
        float low[WIDTH], high[WIDTH];
        unpack<T, WIDTH>(x[i], low);
        unpack<T, WIDTH>(y[i], high);
        rotate<INTERLEAVED>(low, high, cosine, sine);
        T* target = head < q_heads ? q_out + head * q_out_at.head : k_out + head * k_out_at.head;
        store_vector(target + first, low);
        store_vector(target + pairs + first, high);
        if (2 * pairs == head_dim) continue;
        const T* source = head < q_heads ? q + head * q_at.head : k + head * k_at.head;
        for (int rest = 2 * pairs + first; rest < head_dim; rest += pairs) {
            load_vector(source + rest, low);
            store_vector(target + rest, low);
        }
    }
}
