// Rows of q, k and v in shared memory for tensor cores, and how they come there: 16-bit elements, moved 16 bytes at a time.
#pragma once
#include "convert.cuh"
#include "cp_async.cuh"

// Rows of HEAD_DIM 16-bit elements in shared memory, as chunks of 16 bytes. A chunk's place within its row depends on the row,
// so that the same chunk of eight neighbouring rows, what ldmatrix takes at once, lies in different banks.
template <int HEAD_DIM>
struct Rows {
    static constexpr int BYTES = 2 * HEAD_DIM, CHUNKS = HEAD_DIM / 8;
    static constexpr int SPAN = CHUNKS % 8 == 0 ? 8 : 4;  // so many neighbours change places among themselves

    __device__ static int at(unsigned row, unsigned chunk) { return row * BYTES + (chunk ^ row * SPAN / 8 % SPAN) * 16; }

    // What a lane hands to ldmatrix for a 16 x 16 block, the `down`th from above and `right`th from the left, when `lane` is what it
    // hands in for the first one.
    __device__ static int block(int lane, int down, int right) {
        return (lane ^ 32 * right % (16 * SPAN)) + (32 * right / (16 * SPAN) * (16 * SPAN) + 16 * down * BYTES);
    }
};

// Copies a matrix to shared memory, COUNT rows at a time; zeros for what lies past its last row or past head_dim. WIDTH is 8 where each row
// lies on a multiple of 16 bytes and head_dim is a multiple of 8: the copies go on while the thread computes. Else it is 1, and they do not.
template <class T, int HEAD_DIM, int COUNT, int THREADS, int WIDTH>
struct Copier {
    using Row = Rows<HEAD_DIM>;
    static constexpr int LANES = (Row::CHUNKS & (Row::CHUNKS - 1)) == 0 ? Row::CHUNKS : 4;  // side by side in a row
    static constexpr int ROWS = THREADS / LANES;
    static_assert(COUNT % ROWS == 0 && Row::CHUNKS % LANES == 0, "every thread copies as many chunks");

    const T* source;  // this thread's first chunk of the next COUNT rows
    long long stride;
    int head_dim, row, chunk;

    __device__ __forceinline__ Copier(const T* matrix, long long stride, int first, int head_dim, int thread)
        : stride(stride), head_dim(head_dim), row(thread / LANES), chunk(thread % LANES) {
        source = matrix + (first + row) * stride + 8 * chunk;
    }

    // Part `part` of `parts` of the next COUNT rows; the matrix has `rows` more.
    __device__ __forceinline__ void copy(char* target, int rows, int part = 0, int parts = 1) {
        constexpr int TIMES = COUNT / ROWS;
        const int rows_left = rows - row, columns_left = head_dim - 8 * chunk;  // from this thread's first chunk on
#pragma unroll
        for (int i = part * TIMES / parts; i < (part + 1) * TIMES / parts; ++i) {
#pragma unroll
            for (int j = 0; j < Row::CHUNKS; j += LANES)
                copy_chunk(target + Row::at(row + i * ROWS, chunk + j), source + i * ROWS * stride + 8 * j, rows_left > i * ROWS ? columns_left - 8 * j : 0);
        }
        if (part == parts - 1) source += COUNT * stride;
    }

private:
    __device__ __forceinline__ static void copy_chunk(char* target, const T* from, int rest) {
        if constexpr (WIDTH == 8) {
            cp_async_l2(target, from, rest > 0 ? 16 : 0);
        } else {
            __align__(16) T values[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) values[i] = i < rest ? from[i] : from_float<T>(0.0f);
            *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(values);
        }
    }
};
