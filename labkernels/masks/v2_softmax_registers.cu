// Scaled masked softmax, v2: in registers. A row is read once, 16 bytes at a time, masked on the way, and stays until it is written.
//   Idea      As v3 of softmax: a row of up to 1024 keys fits in a warp's registers, one of up to 32768 in a block's. Of short rows a warp has
//             four or two, 8 or 16 lanes each: as many loads under way, and fewer steps from lane to lane. A row waits packed, as it came, until
//             all of it is asked for. Instructions count here, some 15 an element: log2(e) is in the scale, so that e^x is one of them; a longer
//             row's warps take their own largest score, so that they meet once, for both the largest and the sum. What a causal mask hides is
//             not even read.
//   Predicts  The time of a copy, without the half of the reads that a causal mask saves; a mask of (queries, keys) stays in L2.
//   Measured  data/measured/h200/masked_softmax.csv: 32 x 4096 x 4096 in bfloat16 with padding 2023 -> 524 us, 97% of the limit (torch.compile
//             1424); rows of 1024 93% (273 us; 700), of 256 86% (294; 650); causal, rows of 1024, 86% (220 us; 726).
//   Wastes    The trip of the scores through memory, which flash attention does not make.
#include "approx.cuh"
#include "raw_vector.cuh"
#include "score.cuh"
#include "warp.cuh"

// Combines one value a lane over groups of LANES neighbours.
template <int LANES>
__device__ __forceinline__ float lanes_sum(float value) {
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(FULL_WARP, value, distance);
    return value;
}

template <int LANES>
__device__ __forceinline__ float lanes_max(float value) {
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2) value = fmaxf(value, __shfl_xor_sync(FULL_WARP, value, distance));
    return value;
}

__device__ __forceinline__ float finite_or_0(float largest) { return largest == -CUDART_INF_F ? 0.0f : largest; }

// As masked_softmax_naive. ROW_THREADS threads own a row (32: a warp; fewer: a part of one; more: a block), each VECTORS vectors of WIDTH keys.
template <class T, int ROW_THREADS, int VECTORS, int WIDTH>
__global__ void __launch_bounds__(ROW_THREADS < 128 ? 128 : ROW_THREADS)
masked_softmax_registers(const T* x, const void* mask, T* y, long long rows, int heads, int queries, int keys, float scale, int causal,
                         RowStrides x_at, MaskLayout mask_at) {
    constexpr int LANES = ROW_THREADS < 32 ? ROW_THREADS : 32, WARPS = ROW_THREADS / LANES;
    const long long row = (blockIdx.x * (long long)blockDim.x + threadIdx.x) / ROW_THREADS;
    const bool alive = row < rows;  // who is not stays for the exchange between lanes
    const ScoreRow at = score_row(alive ? row : 0, heads, queries, keys, causal, mask_at);
    x += at.batch * x_at.batch + at.head * x_at.head + at.query * x_at.query;
    y += row * keys;
    const int first = threadIdx.x % ROW_THREADS * WIDTH;
    const auto key_of = [&](int k) { return first + k * ROW_THREADS * WIDTH; };

    Raw<T, WIDTH> raw[VECTORS];
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) raw[k] = read_raw<WIDTH>(x + (key_of(k) < at.end ? key_of(k) : 0));  // keys is a multiple of WIDTH
    float value[VECTORS][WIDTH], max = -CUDART_INF_F;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        unpack<T, WIDTH>(raw[k], value[k]);
        if (key_of(k) < at.end) {
            masked_scores<T>(value[k], mask, mask_at, at, key_of(k), scale * LOG2_E);
        } else {
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) value[k][j] = -CUDART_INF_F;
        }
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) max = fmaxf(max, value[k][j]);
    }
    max = lanes_max<LANES>(max);
    const float base = finite_or_0(max);
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) sum += value[k][j] = exp2_approx(value[k][j] - base);
    }
    sum = lanes_sum<LANES>(sum);
    float factor = 1.0f;
    if constexpr (WARPS > 1) {
        __shared__ float2 of_warp[WARPS];
        if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = make_float2(max, sum);
        __syncthreads();
        const float2 other = of_warp[threadIdx.x % WARPS];
        const float all = finite_or_0(lanes_max<WARPS>(other.x));
        sum = lanes_sum<WARPS>(other.y * exp2_approx(other.x - all));  // a warp that sees nothing adds nothing
        factor = exp2_approx(max - all);
    }
    factor = sum == 0.0f ? 0.0f : factor / sum;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) value[k][j] *= factor;
        if (alive && key_of(k) < keys) store_vector(y + key_of(k), value[k]);
    }
}
