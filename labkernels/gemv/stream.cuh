// The stream of v3: a weight (n, k) of 16-bit numbers read once, at the speed of memory, against up to 64 rows of x.
//
// A warp owns 16 rows of the weight and a part of k, and walks along it in steps of 64 bytes a row: lane 4 r + j copies 16 bytes of row r and of
// row r + 8, the j-th of four neighbours, into a ring of AHEAD steps in shared memory that is the warp's own. (In registers they would share the six
// scoreboards that a warp has, and the wait for an old load be one for a new load, too: half the speed, as measured.) What a lane copied
// is two A fragments of mma.sync as it is: which k a column of A stands for is nobody's business as long as B has the same one. B is x, from shared
// memory, a column a row of x. So a row of x costs next to nothing, and what one row gives does not depend on how many there are, bit for bit.
//
// The rows r and r + 8 of a tile need not be neighbours in the weight. Epilogue::row says which they are: a gate and its up, or the two
// numbers of a pair that RoPE turns. Both meet in one thread at the end.
//
// RMSNorm of x: x * norm_weight goes into the product, and 1 / rms, one number a row of x, onto its sums, so that nobody waits for it.
//
// Launched early (programmatic dependent launch), a block asks for its first AHEAD steps, which no kernel before it writes, and only then waits.
#pragma once
#include "cluster.cuh"
#include "convert.cuh"
#include "cp_async.cuh"
#include "fence.cuh"
#include "mma.cuh"
#include "stream_load.cuh"
#include "vector.cuh"
#include "warp.cuh"

#if defined(LK_EMULATOR) || __CUDA_ARCH__ >= 900
constexpr bool HAS_CLUSTERS = true;
#else
constexpr bool HAS_CLUSTERS = false;
#endif

struct Sizes {
    int m, n, k;      // x (m, k), w (n, k)
    int tiles;        // of 16 rows of w
    int each, more;   // steps of k for each warp of the cluster; the first `more` have one more
    float eps;
    int x_stride;     // elements
};

constexpr int ROWS_AT_ONCE = 4;  // of x, that a warp loads before it works on the first
constexpr int SUMS = 17;  // of a tile and a row of x: 16, and that of the squares of x

template <class T, bool NORM, int TILES, int WARPS, int AHEAD, class Epilogue>
__device__ __forceinline__ void stream(const Epilogue& epilogue, const T* x, const T* w, const T* norm_weight, const Sizes& sizes, unsigned char* shared) {
    const int m = sizes.m, lane = lane_id(), warp = warp_id(), r = lane / 4, j = lane % 4;
    const int splits = gridDim.y, part = blockIdx.y * WARPS + warp;
    const int first = part * sizes.each + min(part, sizes.more), steps = sizes.each + (part < sizes.more), most = sizes.each + (sizes.more > 0);
    const int tiles = sizes.tiles;

    uint4* const ring = reinterpret_cast<uint4*>(shared) + warp * AHEAD * 64;  // of a step: 32 pieces of rows r, 32 of rows r + 8
    uint4* const all_staged = reinterpret_cast<uint4*>(shared) + WARPS * AHEAD * 64;
    uint4* const staged = all_staged + warp * most * 4 * m;  // of step s, row i, neighbour j at (s * m + i) * 4 + j
    uint4* const gains = all_staged + WARPS * most * 4 * m + warp * most * 4;
    float* const of_warp = reinterpret_cast<float*>(all_staged + WARPS * most * 4 * (m + (NORM ? 1 : 0)));
    float* const of_block = of_warp + 2 * WARPS * m * SUMS;

    int coming = blockIdx.x, ahead = 0;  // the tile and its step that are asked for next
    const uint4* source[2];
    const auto enter = [&]() {
        ahead = 0;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const long long row = min(epilogue.row(coming, h, r), sizes.n - 1);
            source[h] = reinterpret_cast<const uint4*>(w + row * sizes.k) + 4 * first + j;
        }
    };
    const auto fetch = [&](int slot) {
        if (coming < tiles && ahead < steps) {
            cp_async_stream(ring + slot * 64 + lane, source[0]);
            cp_async_stream(ring + slot * 64 + 32 + lane, source[1]);
            source[0] += 4;
            source[1] += 4;
            if (++ahead == steps) {
                coming += gridDim.x;
                enter();
            }
        }
        cp_async_commit();
    };
    if (NORM) {
        for (int i = lane; i < 4 * steps; i += 32) cp_async_l2(gains + i, reinterpret_cast<const uint4*>(norm_weight) + 4 * first + i);
        cp_async_commit();
    }
    enter();
    for (int slot = 0; slot < AHEAD; ++slot) fetch(slot);
    grid_dependency_wait();
    grid_dependency_launch();
    const uint4* const x_part = reinterpret_cast<const uint4*>(x) + 4 * first;
    const int x_row = sizes.x_stride / 8;
    if (NORM) {
        cp_async_wait<AHEAD>();  // the gains
        for (int base = 0; base < m; base += ROWS_AT_ONCE) {
            float squares[ROWS_AT_ONCE] = {};
            for (int i = lane; i < 4 * steps; i += 32) {
                const Vector<T, 8> gain = reinterpret_cast<const Vector<T, 8>&>(gains[i]);
                uint4 eights[ROWS_AT_ONCE];
#pragma unroll
                for (int at = 0; at < ROWS_AT_ONCE; ++at) {
                    if (base + at < m) eights[at] = x_part[static_cast<long long>(base + at) * x_row + i];
                }
#pragma unroll
                for (int at = 0; at < ROWS_AT_ONCE; ++at) {
                    if (base + at >= m) break;
                    Vector<T, 8>& values = reinterpret_cast<Vector<T, 8>&>(eights[at]);
#pragma unroll
                    for (int e = 0; e < 8; ++e) {
                        const float value = to_float(values.element[e]);
                        squares[at] += value * value;
                        values.element[e] = from_float<T>(value * to_float(gain.element[e]));
                    }
                    staged[(i / 4 * m + base + at) * 4 + i % 4] = eights[at];
                }
            }
#pragma unroll
            for (int at = 0; at < ROWS_AT_ONCE; ++at) {
                if (base + at >= m) break;
                const float sum = warp_sum(squares[at]);
                if (lane < 2) of_warp[((lane * WARPS + warp) * m + base + at) * SUMS + 16] = sum;
            }
        }
    } else {
        for (int row = 0; row < m; ++row) {
            for (int i = lane; i < 4 * steps; i += 32) cp_async_l2(staged + (i / 4 * m + row) * 4 + i % 4, x_part + static_cast<long long>(row) * x_row + i);
        }
        cp_async_wait_all();
    }
    __syncwarp();

    int slot = 0;
    int turn = 0;  // which half of of_warp and of_block
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, turn ^= 1) {
        float total[TILES][4] = {}, other[TILES][4] = {};  // two sums, so that a product need not wait for the one before
        for (int step = 0; step < steps; ++step) {
            cp_async_wait<AHEAD - 1>();
            const uint4 up = ring[slot * 64 + lane], low = ring[slot * 64 + 32 + lane];
            const unsigned left[4] = {up.x, low.x, up.y, low.y}, right[4] = {up.z, low.z, up.w, low.w};
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
                uint4 b = make_uint4(0, 0, 0, 0);
                if (8 * t + r < m) b = staged[(step * m + 8 * t + r) * 4 + j];
                const unsigned b_left[2] = {b.x, b.y}, b_right[2] = {b.z, b.w};
                mma_m16n8k16<T>(total[t], left, b_left, total[t]);
                mma_m16n8k16<T>(other[t], right, b_right, other[t]);
            }
            fetch(slot);
            slot = slot + 1 == AHEAD ? 0 : slot + 1;
        }
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = 8 * t + 2 * j + i % 2;
                if (row < m) of_warp[((turn * WARPS + warp) * m + row) * SUMS + r + i / 2 * 8] = total[t][i] + other[t][i];
            }
        }
        __syncthreads();
        const auto of_all_warps = [&](int row, int at) {
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < WARPS; ++i) sum += of_warp[((turn * WARPS + i) * m + row) * SUMS + at];
            return sum;
        };
        const auto of_all_blocks = [&](int row, int at) {
            float sum = 0.0f;
            for (int i = 0; i < splits; ++i) sum += of_block[((turn * splits + i) * m + row) * SUMS + at];
            return sum;
        };
        const bool split = HAS_CLUSTERS && splits > 1;
        if constexpr (HAS_CLUSTERS) {
            if (split) {
                if (tile == blockIdx.x) cluster_sync();  // all have begun: now their shared memory is there
                for (int i = threadIdx.x; i < SUMS * m; i += 32 * WARPS) {
                    if (!NORM && i % SUMS == 16) continue;
                    *map_shared_rank(&of_block[(turn * splits + blockIdx.y) * m * SUMS + i], 0) = of_all_warps(i / SUMS, i % SUMS);
                }
                cluster_sync();
                if (blockIdx.y > 0) continue;
            }
        }
        for (int i = threadIdx.x; i < 8 * m; i += 32 * WARPS) {
            const int row = i / 8, at = i % 8;
            float a = split ? of_all_blocks(row, at) : of_all_warps(row, at), b = split ? of_all_blocks(row, at + 8) : of_all_warps(row, at + 8);
            if (NORM) {
                const float squares = split ? of_all_blocks(row, 16) : of_all_warps(row, 16), scale = rsqrtf(squares / sizes.k + sizes.eps);
                a *= scale;
                b *= scale;
            }
            epilogue.put(row, tile, at, a, b);
        }
    }
}
