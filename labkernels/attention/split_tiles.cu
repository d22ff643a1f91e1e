// Queries, keys and values in float32 as two halves each, x = scale * (high + low), for v7_split.cu to multiply. halves.cuh says how.
//
// One scale for a tile of 128 rows of one head: v7 works tile by tile, and multiplies each tile's products by its two scales. What is
// written is dense, whatever the strides of what was read: all high halves (heads of all batches, padded rows, HEAD_DIM), after them all low
// ones, with zeros from row `rows` to a multiple of 128 and from column `columns` to HEAD_DIM; and the scales (heads of all batches, tiles),
// with a minus sign for a tile that has an infinity, for v7 to see.
//
// All three tensors in one launch: grid (tiles, heads of all batches from first_matrix on, 3), as many of each as the largest of them needs;
// 256 threads.
#include "halves.cuh"
#include "strides.cuh"
#include "vector.cuh"
#include "warp.cuh"

constexpr int TILE = 128, THREADS = 256;

// WIDTH is how many elements of a row can be read at a time: 4 or 1. k and v have kv_heads of kv_len rows, q `heads` of seq_len.
template <int HEAD_DIM, int WIDTH>
__global__ void __launch_bounds__(THREADS)
    split_tiles(const float* q, const float* k, const float* v, Strides q_strides, Strides k_strides, Strides v_strides, __half* q_halves,
                __half* k_halves, __half* v_halves, float* q_scales, float* k_scales, float* v_scales, int batches, int heads, int kv_heads,
                int seq_len, int kv_len, int columns, int first_matrix) {
    const int rows = blockIdx.z == 0 ? seq_len : kv_len, own_heads = blockIdx.z == 0 ? heads : kv_heads;
    const int tiles = (rows + TILE - 1) / TILE, matrices = batches * own_heads, tile = blockIdx.x, matrix = blockIdx.y + first_matrix;
    if (tile >= tiles || matrix >= matrices) return;
    const Strides strides = blockIdx.z == 0 ? q_strides : blockIdx.z == 1 ? k_strides : v_strides;
    const float* const x = head_matrix(blockIdx.z == 0 ? q : blockIdx.z == 1 ? k : v, strides, matrix / own_heads, matrix % own_heads);
    float* const scales = blockIdx.z == 0 ? q_scales : blockIdx.z == 1 ? k_scales : v_scales;
    __half* const halves = blockIdx.z == 0 ? q_halves : blockIdx.z == 1 ? k_halves : v_halves;
    constexpr int UNITS = HEAD_DIM / 8, EACH = TILE * UNITS / THREADS;  // of 8 elements: in a row, and for a thread

    float kept[EACH][8], largest = 0.0f;
    bool infinite = false;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int unit = i * THREADS + threadIdx.x, row = tile * TILE + unit / UNITS, column = unit % UNITS * 8;
        load_unit<WIDTH>(x + (row < rows ? row * strides.seq + column : 0), row < rows ? columns - column : 0, kept[i]);
    }
#pragma unroll
    for (int i = 0; i < 8 * EACH; ++i) {
        const float size = fabsf(kept[i / 8][i % 8]);
        if (size < CUDART_INF_F) largest = fmaxf(largest, size);
        infinite |= size == CUDART_INF_F;
    }
    __shared__ float of_warp[THREADS / 32];
    for (int distance = 16; distance > 0; distance /= 2) largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, distance));
    if (lane_id() == 0) of_warp[warp_id()] = largest;
    infinite = __syncthreads_or(infinite);
    for (int i = 0; i < THREADS / 32; ++i) largest = fmaxf(largest, of_warp[i]);
    const float scale = power_of_two_below(largest), factor = reciprocal(scale);
    if (threadIdx.x == 0) scales[matrix * tiles + tile] = infinite ? -scale : scale;

    __half* const high = halves + (matrix * (long long)tiles + tile) * (TILE * HEAD_DIM);
    __half* const low = high + (long long)matrices * tiles * (TILE * HEAD_DIM);
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int at = 8 * (i * THREADS + threadIdx.x);
        store_unit(high + at, low + at, kept[i], factor);
    }
}
