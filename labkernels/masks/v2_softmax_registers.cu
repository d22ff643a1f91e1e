// Scaled masked softmax, v2: in registers. A row is read once, 16 bytes at a time, masked on the way, and stays until it is written.
//   Idea      As v3 of softmax: a row of up to 1024 keys fits in a warp's registers, one of up to 32768 in a block's. Of short rows a warp has
//             four or two, 8 or 16 lanes each: as many loads under way, and fewer steps from lane to lane. Scale and mask cost an
//             instruction or two an element, beside the memory's time. What a causal mask hides is not even read.
//   Predicts  The time of a copy, without the half of the reads that a causal mask saves; a mask of (queries, keys) stays in L2.
//   Measured  Not recorded yet; to be in data/measured/h200/masked_softmax.csv.
//   Wastes    The trip of the scores through memory, which flash attention does not make.
#include "block.cuh"
#include "score.cuh"

// Combines one value a lane over groups of LANES neighbours.
template <int LANES>
__device__ float lanes_sum(float value) {
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(FULL_WARP, value, distance);
    return value;
}

template <int LANES>
__device__ float lanes_max(float value) {
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2) value = fmaxf(value, __shfl_xor_sync(FULL_WARP, value, distance));
    return value;
}

// As masked_softmax_naive. ROW_THREADS threads own a row (32: a warp; fewer: a part of one; more: a block), each VECTORS vectors of WIDTH keys.
template <class T, int ROW_THREADS, int VECTORS, int WIDTH>
__global__ void __launch_bounds__(ROW_THREADS < 128 ? 128 : ROW_THREADS)
masked_softmax_registers(const T* x, const void* mask, T* y, long long rows, int heads, int queries, int keys, float scale, int causal,
                         RowStrides x_at, MaskLayout mask_at) {
    const long long row = (blockIdx.x * (long long)blockDim.x + threadIdx.x) / ROW_THREADS;
    const bool alive = row < rows;  // who is not stays for the exchange between lanes
    const ScoreRow at = score_row(alive ? row : 0, heads, queries, keys, causal, mask_at);
    x += at.batch * x_at.batch + at.head * x_at.head + at.query * x_at.query;
    y += row * keys;
    const int first = threadIdx.x % ROW_THREADS * WIDTH;

    float value[VECTORS][WIDTH];
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        const int key = first + k * ROW_THREADS * WIDTH;
        if (alive && key < at.end) load_vector(x + key, value[k]);  // keys is a multiple of WIDTH
    }
    float max = -CUDART_INF_F;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        const int key = first + k * ROW_THREADS * WIDTH;
        if (alive && key < at.end) {
            masked_scores<T>(value[k], mask, mask_at, at, key, scale);
        } else {
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) value[k][j] = -CUDART_INF_F;
        }
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) max = fmaxf(max, value[k][j]);
    }
    max = ROW_THREADS <= 32 ? lanes_max<ROW_THREADS>(max) : block_max(max);
    const float base = max == -CUDART_INF_F ? 0.0f : max;

    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) sum += value[k][j] = __expf(value[k][j] - base);
    }
    sum = ROW_THREADS <= 32 ? lanes_sum<ROW_THREADS>(sum) : block_sum(sum);
    const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        const int key = first + k * ROW_THREADS * WIDTH;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) value[k][j] *= factor;
        if (alive && key < keys) store_vector(y + key, value[k]);
    }
}
