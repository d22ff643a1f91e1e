// What the rotary kernels share: where a tensor's heads lie, which position a token has, and the sine and cosine of a pair's angle.
#pragma once
#include "raw_vector.cuh"

// How far apart neighbours are along each axis of (batch, heads, seq, head_dim), in elements.
struct HeadStrides {
    long long batch, head, seq, dim;
};

// The positions of the tokens: 0, 1, 2 ... along seq where `numbers` is null, else int32, or int64 if `wide`; strides of 0 repeat them.
struct Positions {
    long long batch_stride, seq_stride;
    int wide, unused;
};

__device__ inline long long position_of(const void* numbers, Positions layout, int batch, int seq) {
    if (numbers == nullptr) return seq;
    const long long index = batch * layout.batch_stride + seq * layout.seq_stride;
    return layout.wide ? static_cast<const long long*>(numbers)[index] : static_cast<const int*>(numbers)[index];
}

// Where the k and v of a token go: (pages, kv_heads, page_size, head_dim), any strides but head_dim's, which is 1.
struct CacheLayout {
    long long page, head, seq;
    int page_size, unused;
};

struct Turn {
    float cosine, sine;
};

// The turn by position * frequency. A float32 product would be off by position * frequency * 2^-24, half a degree at position 131072: the
// product's rounding error is kept, whole turns are taken off in two steps, and only what is left, at most pi, goes to the fast sine.
__device__ inline Turn turn_by(float position, float frequency) {
    const float angle = position * frequency, rest = fmaf(position, frequency, -angle);
    const float turns = rintf(angle * 0.15915494309f);
    float small = fmaf(turns, -6.28318548203f, angle);  // 2 pi as a float ...
    small = fmaf(turns, 1.74845553e-7f, small) + rest;  // ... and what that is too much
    return {__cosf(small), __sinf(small)};
}

// The turn of pair `pair` at `position`. `angles` holds one frequency a pair (rows = 0), or is a table of `rows` positions, each with the
// cosines of all `pairs` pairs, then the sines. A position outside the table turns into NaN. sign -1 turns back.
__device__ inline Turn turn_of(const float* angles, int rows, int pairs, long long position, int pair, float sign) {
    Turn turn;
    if (rows == 0) {
        turn = turn_by(static_cast<float>(position), angles[pair]);
    } else if (position >= 0 && position < rows) {
        const float* row = angles + position * 2 * pairs;
        turn = {row[pair], row[pairs + pair]};
    } else {
        turn = {NAN, NAN};
    }
    turn.sine *= sign;
    return turn;
}

// Adds a vector of the bias, where there is one.
template <class T, int N>
__device__ void add_bias(const T* bias, int col, float (&values)[N]) {
    if (bias == nullptr) return;
    float add[N];
    load_vector(bias + col, add);
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] += add[j];
}

// Turns the pairs of two vectors of one head. Half-split: element j of `a` and element j of `b` are a pair. Interleaved: neighbours within
// each vector are, with the turns of a's pairs in the first half of cosine and sine, those of b's in the second.
template <bool INTERLEAVED, int N>
__device__ void rotate(float (&a)[N], float (&b)[N], const float (&cosine)[N], const float (&sine)[N]) {
    if constexpr (INTERLEAVED) {
#pragma unroll
        for (int j = 0; j < N / 2; ++j) {
            const float a0 = a[2 * j], a1 = a[2 * j + 1], b0 = b[2 * j], b1 = b[2 * j + 1];
            a[2 * j] = a0 * cosine[j] - a1 * sine[j];
            a[2 * j + 1] = a1 * cosine[j] + a0 * sine[j];
            b[2 * j] = b0 * cosine[N / 2 + j] - b1 * sine[N / 2 + j];
            b[2 * j + 1] = b1 * cosine[N / 2 + j] + b0 * sine[N / 2 + j];
        }
    } else {
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const float x = a[j], y = b[j];
            a[j] = x * cosine[j] - y * sine[j];
            b[j] = y * cosine[j] + x * sine[j];
        }
    }
}

// The turns that `rotate` wants for part `part` of a head: vector `part` of its first half, vector `part` of its second. `angles` must lie on
// 16 bytes and pairs be a multiple of N, so that half of the turns' numbers are one load.
template <bool INTERLEAVED, int N>
__device__ void turns_of_part(const float* angles, int rows, int pairs, long long position, int part, float sign, float (&cosine)[N],
                              float (&sine)[N]) {
    const int first = INTERLEAVED ? part * (N / 2) : part * N, second = INTERLEAVED ? first + pairs / 2 : first + N / 2;
    const bool known = rows == 0 || position >= 0 && position < rows;
    const float* row = known && rows != 0 ? angles + position * 2 * pairs : angles;
    float low[N / 2], high[N / 2];
    load_vector(row + first, low);
    load_vector(row + second, high);
#pragma unroll
    for (int j = 0; j < N; ++j) cosine[j] = known ? j < N / 2 ? low[j % (N / 2)] : high[j % (N / 2)] : NAN;
    if (rows == 0) {
        const float p = static_cast<float>(position);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const Turn turn = turn_by(p, cosine[j]);
            cosine[j] = turn.cosine;
            sine[j] = turn.sine * sign;
        }
        return;
    }
    load_vector(row + pairs + first, low);
    load_vector(row + pairs + second, high);
#pragma unroll
    for (int j = 0; j < N; ++j) sine[j] = known ? (j < N / 2 ? low[j % (N / 2)] : high[j % (N / 2)]) * sign : NAN;
}
