// A matrix as 8-bit floats, as it lies and turned round, in one pass.
//   Idea      wgmma takes fp8 operands with k dense alone. A linear layer's three products contract over three axes: x and the gradient
//             are needed both ways. A block reads a tile of 128 x 128 once. A thread has 4 rows x 8 columns of it; it writes the rows as
//             they are, turns 4 x 4 bytes round in its registers, and puts columns of 4 rows into shared memory, from where they leave in
//             rows of 128 bytes.
//   Predicts  2 bytes read and 2 written an element: 32768 x 4096 take 0.54 GB, 0.13 ms, where a cast and a transposition take 0.8 GB.
//   Measured  Not alone: data/measured/h200/training.csv, the row fp8, 276 -> 208 ms a step of 645M (row cublas).
//   Wastes    The trip of the 16-bit numbers through memory: a kernel that makes them could write these in their place, as those of SwiGLU
//             below do.
// Scales may be those of the steps before (fp8_scales.py): then `largest` is where a kernel leaves the largest number that it saw, for the
// steps to come, and nobody walks over a tensor for its sake.
#include "fp8_tile.cuh"

constexpr int TILE = 128, WORDS = TILE / 4;  // of 4 bytes in a column of the tile

// Where a block's tile waits until its columns leave: column by column; word w (4 rows) of column c is at w ^ 2 * (c / 8).
struct Tile {
    unsigned* words;

    // 4 rows x 8 columns, `bytes[i][r]`: columns 4 i to 4 i + 3 of row r, from column 8 * group, row 4 * word.
    __device__ __forceinline__ void put(const unsigned (&bytes)[2][4], int group, int word) const {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            unsigned columns[4];
            turn(bytes[i], columns);
#pragma unroll
            for (int j = 0; j < 4; ++j) words[(8 * group + 4 * i + j) * WORDS + (word ^ 2 * group)] = columns[j];
        }
    }
    // The columns, from first_col to cols, as rows of `turned` (..., rows).
    __device__ __forceinline__ void leave(unsigned char* turned, int first_row, int first_col, int rows, int cols) const {
#pragma unroll
        for (int round = 0; round < 4; ++round) {
            const int piece = threadIdx.x % 8, c = threadIdx.x / 8 + 32 * round, swap = c / 8;  // 16 rows of column c
            if (first_col + c >= cols || first_row + 16 * piece >= rows) continue;
            const uint4 read = reinterpret_cast<const uint4*>(words + c * WORDS)[piece ^ swap / 2];
            const uint4 found = swap % 2 ? make_uint4(read.z, read.w, read.x, read.y) : read;
            *reinterpret_cast<uint4*>(turned + static_cast<long long>(first_col + c) * rows + first_row + 16 * piece) = found;
        }
    }
};

// values (rows, cols) and turned (cols, rows; may be null) are x (rows, cols) times *scale; what is too large becomes the largest. rows
// and cols are multiples of 16, rows of x begin on 16 bytes. Grid: (tiles of columns, tiles of rows), 256 threads.
template <class T, bool E5M2>
__global__ void __launch_bounds__(256) fp8_cast(const T* x, long long x_stride, const float* scale, unsigned char* values, unsigned char* turned,
                                                float* largest, int rows, int cols) {
    __shared__ __align__(16) unsigned words[TILE * WORDS];
    __shared__ float of_warps[8];
    float seen = 0.0f;
    const Tile tile{words};
    const float factor = *scale;
    const int first_row = blockIdx.y * TILE, first_col = blockIdx.x * TILE;
    const int group = threadIdx.x % 16, col = first_col + 8 * group;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int word = threadIdx.x / 16 + 16 * half, row = first_row + 4 * word;
        unsigned bytes[2][4] = {};
        if (row < rows && col < cols) {
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                float v[8];
                load_vector(x + (row + r) * x_stride + col, v);
                seen = larger(seen, v);
                const uint2 packed = pack8<E5M2>(v, factor);
                bytes[0][r] = packed.x, bytes[1][r] = packed.y;
                *reinterpret_cast<uint2*>(values + static_cast<long long>(row + r) * cols + col) = packed;
            }
        }
        if (turned != nullptr) tile.put(bytes, group, word);
    }
    leave_largest(largest, seen, of_warps);
    if (turned == nullptr) return;
    __syncthreads();
    tile.leave(turned, first_row, first_col, rows, cols);
}

__device__ __forceinline__ float sigmoid_of(float x) { return 1.0f / (1.0f + __expf(-x)); }

// silu(gate) * up times *scale in e4m3, never in 16 bits: gate_up (rows, 2 n) with all gates before all ups, contiguous; values (rows, n).
// Sizes and launch as above, with tiles of n.
template <class T>
__global__ void __launch_bounds__(256) fp8_swiglu(const T* gate_up, const float* scale, unsigned char* values, float* largest, int rows, int n) {
    __shared__ float of_warps[8];
    const float factor = *scale;
    const int row = blockIdx.y * TILE + threadIdx.x / 16 * 8, col = blockIdx.x * TILE + threadIdx.x % 16 * 8;
    float seen = 0.0f;
    if (row < rows && col < n) {
#pragma unroll
        for (int r = 0; r < 8; ++r) {
            const long long at = (row + r) * static_cast<long long>(n) + col, gate_at = at + (row + r) * static_cast<long long>(n);
            float gate[8], up[8];
            load_vector(gate_up + gate_at, gate);
            load_vector(gate_up + gate_at + n, up);
#pragma unroll
            for (int i = 0; i < 8; ++i) gate[i] *= sigmoid_of(gate[i]) * up[i];
            seen = larger(seen, gate);
            *reinterpret_cast<uint2*>(values + at) = pack8<false>(gate, factor);
        }
    }
    leave_largest(largest, seen, of_warps);
}

// The gradient of silu(gate) * up times *scale, never in 16 bits: grad (rows, n), gate_up (rows, 2 n) with all gates before all ups, both
// contiguous; values (rows, 2 n) and turned (2 n, rows) in e5m2. Where HIDDEN, silu(gate) * up itself times *hidden_scale once more, in
// e4m3, hidden_turned (n, rows): cheaper than to keep it. A block has a tile of the gates and the tile of the ups that belong to them.
// Sizes and launch as above, with tiles of n.
template <class T, bool HIDDEN>
__global__ void __launch_bounds__(256)
    fp8_swiglu_backward(const T* grad, const T* gate_up, const float* scale, unsigned char* values, unsigned char* turned, float* largest,
                        const float* hidden_scale, unsigned char* hidden_turned, int rows, int n) {
    __shared__ __align__(16) unsigned words[HIDDEN ? 3 : 2][TILE * WORDS];
    const Tile gates{words[0]}, ups{words[1]}, hidden{words[HIDDEN ? 2 : 0]};
    const float factor = *scale, hidden_factor = HIDDEN ? *hidden_scale : 0.0f;
    float seen = 0.0f;
    const int first_row = blockIdx.y * TILE, first_col = blockIdx.x * TILE;
    const int group = threadIdx.x % 16, col = first_col + 8 * group;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int word = threadIdx.x / 16 + 16 * half, row = first_row + 4 * word;
        unsigned of_gates[2][4] = {}, of_ups[2][4] = {}, of_hidden[2][4] = {};
        if (row < rows && col < n) {
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const long long at = (row + r) * static_cast<long long>(n) + col, gate_at = at + (row + r) * static_cast<long long>(n);
                float g[8], gate[8], up[8], h[8];
                load_vector(grad + at, g);
                load_vector(gate_up + gate_at, gate);
                load_vector(gate_up + gate_at + n, up);
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    const float sigmoid = sigmoid_of(gate[i]), silu = gate[i] * sigmoid;
                    h[i] = silu * up[i];
                    gate[i] = g[i] * up[i] * (sigmoid + silu * (1.0f - sigmoid));
                    up[i] = g[i] * silu;
                }
                seen = larger(larger(seen, gate), up);
                if (HIDDEN) {
                    const uint2 packed_hidden = pack8<false>(h, hidden_factor);
                    of_hidden[0][r] = packed_hidden.x, of_hidden[1][r] = packed_hidden.y;
                }
                const uint2 packed = pack8<true>(gate, factor), packed_up = pack8<true>(up, factor);
                of_gates[0][r] = packed.x, of_gates[1][r] = packed.y, of_ups[0][r] = packed_up.x, of_ups[1][r] = packed_up.y;
                *reinterpret_cast<uint2*>(values + gate_at) = packed;
                *reinterpret_cast<uint2*>(values + gate_at + n) = packed_up;
            }
        }
        gates.put(of_gates, group, word);
        ups.put(of_ups, group, word);
        if (HIDDEN) hidden.put(of_hidden, group, word);
    }
    __syncthreads();
    gates.leave(turned, first_row, first_col, rows, n);
    ups.leave(turned + static_cast<long long>(n) * rows, first_row, first_col, rows, n);
    if (HIDDEN) hidden.leave(hidden_turned, first_row, first_col, rows, n);
    if (largest == nullptr) return;
    __syncthreads();  // all tiles have left
    leave_largest(largest, seen, reinterpret_cast<float*>(words[0]));
}
