// RMSNorm of x + residual, written as 8-bit floats as it lies and turned round: what a norm before an fp8 product makes.
//   Idea      The 16-bit norm is written only to be read by fp8_cast. Here a warp has four rows at once, two 16-bit elements of the sum a
//             register, and writes fp8 from there. Four rows are what it takes to turn 4 x 4 bytes round in registers; a block has 32 rows,
//             whose columns leave through shared memory in pieces of 32 bytes.
//   Predicts  4 passes over 16-bit rows (two read, the sum and both fp8 orders written) where there were 6: 94 us for 32768 x 1536, not 141.
//   Measured  Not alone: it is part of the row fp8 of data/measured/h200/training.csv.
//   Wastes    Half of each 64 bytes that DRAM writes at a time, if the neighbouring block is too late for L2 to join them.
#include "fp8_tile.cuh"
#include "../../norm/packed.cuh"

constexpr int WARPS = 8, ROWS = 4 * WARPS;  // of a block

// sum = x + residual (rows, cols), values (rows, cols) and turned (cols, rows; may be null) the norm of it times weight and *scale, e4m3; all
// dense. rows is a multiple of 16, cols of 8 and at most 256 * VECTORS. Grid: a block for 32 rows; 32 * cols bytes of shared memory.
template <class T, int VECTORS>
__global__ void __launch_bounds__(32 * WARPS, VECTORS <= 6 ? 2 : 1)
    fp8_add_rms_norm(const T* x, const T* residual, const T* weight, const float* scale, T* sum, unsigned char* values, unsigned char* turned,
                     float* largest, int rows, int cols, float eps) {
    extern __shared__ __align__(16) unsigned columns_of_rows[];  // word w (rows 4 w to 4 w + 3) of column c: w * cols + c % 8 * (cols / 8) + c / 8
    __shared__ float of_warps[WARPS];
    const int warp = warp_id(), lane = lane_id(), first_row = blockIdx.x * ROWS, row = first_row + 4 * warp;
    const float factor = *scale;
    const bool inside = row < rows;
    Packed<T, 8> value[4][VECTORS];
    float squares[4] = {};
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int k = 0; k < VECTORS; ++k) {
            const int col = 8 * (32 * k + lane);
            if (!inside || col >= cols) continue;
            const long long at = (row + r) * static_cast<long long>(cols) + col;
            const Packed<T, 8> a = *reinterpret_cast<const Packed<T, 8>*>(x + at), b = *reinterpret_cast<const Packed<T, 8>*>(residual + at);
#pragma unroll
            for (int j = 0; j < 8; j += 2) value[r][k].set(j, a[j] + b[j], a[j + 1] + b[j + 1]);
            *reinterpret_cast<Packed<T, 8>*>(sum + at) = value[r][k];
#pragma unroll
            for (int j = 0; j < 8; ++j) squares[r] += value[r][k][j] * value[r][k][j];
        }
        stay_packed(value[r]);
    }
    float rstd[4], seen = 0.0f;
#pragma unroll
    for (int r = 0; r < 4; ++r) rstd[r] = rsqrtf(warp_sum(squares[r]) / cols + eps);
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        const int col = 8 * (32 * k + lane);
        if (!inside || col >= cols) continue;
        float weights[8];
        load_vector(weight + col, weights);
        unsigned bytes[2][4];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            float normed[8];
#pragma unroll
            for (int j = 0; j < 8; ++j) normed[j] = value[r][k][j] * rstd[r] * weights[j];
            seen = larger(seen, normed);
            const uint2 packed = pack8<false>(normed, factor);
            bytes[0][r] = packed.x, bytes[1][r] = packed.y;
            *reinterpret_cast<uint2*>(values + (row + r) * static_cast<long long>(cols) + col) = packed;
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            unsigned words[4];
            turn(bytes[i], words);
#pragma unroll
            for (int j = 0; j < 4; ++j) columns_of_rows[warp * cols + (4 * i + j) * (cols / 8) + col / 8] = words[j];
        }
    }
    leave_largest(largest, seen, of_warps);
    if (turned == nullptr) return;
    __syncthreads();
    for (int place = threadIdx.x; place < cols; place += 32 * WARPS) {
        const int col = place % (cols / 8) * 8 + place / (cols / 8);
        unsigned char* out = turned + static_cast<long long>(col) * rows + first_row;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (first_row + 16 * half >= rows) continue;
            const unsigned* word = columns_of_rows + 4 * half * cols + place;
            *reinterpret_cast<uint4*>(out + 16 * half) = make_uint4(word[0], word[cols], word[2 * cols], word[3 * cols]);
        }
    }
}
