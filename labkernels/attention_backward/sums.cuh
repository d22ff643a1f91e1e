// Sums of dq as the warpgroups of v3 leave them, in the order of their accumulators: warpgroup after warpgroup, four sums of a thread together.
#pragma once
#include "ldmatrix.cuh"
#include "pack.cuh"
#include "warpgroups.cuh"

// The sums of one tile, times scale, as rows of T in shared memory, by two warpgroups. Synchronise before they are read.
template <class T, int HEAD_DIM, int BLOCK_Q>
struct SumsAsRows {
    static constexpr int STRIDE = HEAD_DIM * 2 + 16;  // bytes, so that rows do not meet in a bank
    static constexpr int BYTES = BLOCK_Q * STRIDE;

    __device__ __forceinline__ static void write(const float* sums, float scale, char* tile) {
        constexpr int COLUMNS = BLOCK_Q == 64 ? HEAD_DIM / 2 : HEAD_DIM;
        const int warpgroup = threadIdx.x / GROUP, thread = threadIdx.x % GROUP, lane = thread % 32;
        const float4* own = reinterpret_cast<const float4*>(sums) + warpgroup * 16 * COLUMNS + thread;
        const int row = (BLOCK_Q == 64 ? 0 : warpgroup * 64) + thread / 32 * 16 + lane % 16, first_column = BLOCK_Q == 64 ? warpgroup * COLUMNS : 0;
#pragma unroll
        for (int i = 0; i < COLUMNS / 16; ++i) {
            const float4 left = own[2 * i * GROUP], right = own[(2 * i + 1) * GROUP];
            const unsigned packed[4] = {pack_pair<T>(left.x * scale, left.y * scale), pack_pair<T>(left.z * scale, left.w * scale),
                                        pack_pair<T>(right.x * scale, right.y * scale), pack_pair<T>(right.z * scale, right.w * scale)};
            stmatrix(tile + row * STRIDE + (first_column + 16 * i + lane / 16 * 8) * 2, packed);
        }
    }
};
