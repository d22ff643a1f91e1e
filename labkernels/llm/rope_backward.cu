// The end of attention's backward pass where queries and keys were turned before it: sums of dq, which attention_backward v3 leaves in float32, and dk become
// gradients of the stacked projection, turned back, in the places that it has for them.
//   Idea      Three walks are one. The sums of dq were read and written as rows, the rows read and written again by RoPE's kernel; and dk and dv, which v3 now
//             writes where they belong, were copied there.
//   Predicts  32768 tokens, 24 + 6 heads of 64: 201 MB of sums in, 126 MB out, 25 in: 85 us a layer, of 150.
//   Measured  A part of all rows with our attention in data/measured/h200/training.csv. When it was tuned, the whole backward pass of a
//             layer, 16 x 2048 tokens on an H200: 1.469 -> 1.414 ms.
//   Wastes    The sums go through memory: nobody but the last block that adds to a tile could have turned it.
#include "../attention_backward/backward.cuh"
#include "../attention_backward/sums.cuh"
#include "../rope/rope.cuh"

// sums as in sums.cuh; grad (batch, seq, heads + 2 kv_heads, HEAD_DIM), dense, has dk where it belongs. angles
// (angle_rows, HEAD_DIM): cosines, then sines. Launch (tiles of BLOCK_Q, batch * (heads + kv_heads)) blocks of two warpgroups.
template <class T, int HEAD_DIM, int BLOCK_Q>
__global__ void __launch_bounds__(2 * GROUP)
    rope_backward(const float* sums, T* grad, const float* angles, const void* positions, Positions layout, int angle_rows, int heads, int kv_heads,
                  int seq_len, float scale) {
    using Rows = SumsAsRows<T, HEAD_DIM, BLOCK_Q>;
    constexpr int PIECES = HEAD_DIM / 16;  // of half a head
    __shared__ __align__(16) char tile[Rows::BYTES];
    const int all = heads + kv_heads, batch = blockIdx.y / all, head = blockIdx.y % all, first = static_cast<int>(blockIdx.x) * BLOCK_Q;
    if (head < heads) {
        const long long index = static_cast<long long>(batch * heads + head) * gridDim.x + blockIdx.x;
        Rows::write(sums + index * BLOCK_Q * HEAD_DIM, scale, tile);
    }
    __syncthreads();
    const long long of_token = static_cast<long long>(all + kv_heads) * HEAD_DIM;
    T* const out = grad + (static_cast<long long>(batch) * seq_len + first) * of_token + head * HEAD_DIM;
#pragma unroll 2
    for (int i = threadIdx.x; i < BLOCK_Q * PIECES; i += 2 * GROUP) {
        const int r = i / PIECES, column = i % PIECES * 8;
        if (first + r >= seq_len) break;
        const long long position = position_of(positions, layout, batch, first + r);
        const bool known = position >= 0 && position < angle_rows;
        const float* const turns = angles + (known ? position : 0) * HEAD_DIM + column;
        T* const target = out + r * of_token + column;
        const T* const source = head < heads ? reinterpret_cast<const T*>(tile + r * Rows::STRIDE) + column : target;
        float low[8], high[8], cosine[8], sine[8];
        load_vector(source, low);
        load_vector(source + HEAD_DIM / 2, high);
        load_vector(turns, cosine);
        load_vector(turns + HEAD_DIM / 2, sine);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            if (!known) cosine[j] = NAN;
            sine[j] = -sine[j];
        }
        rotate<false>(low, high, cosine, sine);
        store_vector(target, low);
        store_vector(target + HEAD_DIM / 2, high);
    }
}
