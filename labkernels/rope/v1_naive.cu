// RoPE, v1: naive. One thread turns one pair of one head: q's heads first, then k's, all in one launch.
//   Idea      A pair (x, y) of a head at position p is turned by the angle p * frequency: (x cos - y sin, y cos + x sin). That the scores
//             q k of turned vectors know only the distance of their positions is all there is to rotary embedding. Backward turns back.
//   Predicts  2 bytes a lane and a load in 16 bits; and every head of a token works out the same sines again: 40 times for 32 + 8 heads.
//   Measured  data/measured/h200/rope.csv: 4 x 4096 tokens, 32 and 8 heads of 128 in bfloat16, in 397 us, 20% of the limit; torch.compile 202.
//   Wastes    All but one of a token's sines; 7 of 8 load and store instructions; divisions to find the pair.
#include "rope.cuh"

// q (batch, q_heads, seq, head_dim) and k (batch, k_heads, seq, head_dim) to q_out and k_out of the same shapes, any strides. The first
// 2 * pairs elements of a head are turned, the rest is copied. Pair i is (i, pairs + i), or (2i, 2i + 1) if interleaved. One thread a pair,
// pairs of a rest count too: pairs_in_head of them.
template <class T>
__global__ void rope_naive(const T* q, const T* k, T* q_out, T* k_out, const float* angles, const void* positions, int batch, int seq,
                           int q_heads, int k_heads, int pairs, int head_dim, int angle_rows, float sign, bool interleaved,
                           HeadStrides q_at, HeadStrides k_at, HeadStrides q_out_at, HeadStrides k_out_at, Positions layout) {
    const int units = pairs + head_dim - 2 * pairs;  // of a head: its pairs, then single elements to copy
    long long index = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (index >= static_cast<long long>(batch) * seq * (q_heads + k_heads) * units) return;
    const int unit = index % units;
    index /= units;
    int head = index % (q_heads + k_heads);
    index /= q_heads + k_heads;
    const int s = index % seq, b = index / seq;

    const T* source = q + b * q_at.batch + head * q_at.head + s * q_at.seq;
    T* target = q_out + b * q_out_at.batch + head * q_out_at.head + s * q_out_at.seq;
    long long from = q_at.dim, to = q_out_at.dim;
    if (head >= q_heads) {
        head -= q_heads;
        source = k + b * k_at.batch + head * k_at.head + s * k_at.seq;
        target = k_out + b * k_out_at.batch + head * k_out_at.head + s * k_out_at.seq;
        from = k_at.dim;
        to = k_out_at.dim;
    }
    if (unit >= pairs) {
        target[(pairs + unit) * to] = source[(pairs + unit) * from];
        return;
    }
    const int first = interleaved ? 2 * unit : unit, second = interleaved ? first + 1 : first + pairs;
    const Turn turn = turn_of(angles, angle_rows, pairs, position_of(positions, layout, b, s), unit, sign);
    const float x = to_float(source[first * from]), y = to_float(source[second * from]);
    target[first * to] = from_float<T>(x * turn.cosine - y * turn.sine);
    target[second * to] = from_float<T>(y * turn.cosine + x * turn.sine);
}
