// The stream of v3: a weight (n, k) of 16, 8 or 4 bits a number read once, at the speed of memory, against up to 64 rows of x.
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
// Numbers of 8 and 4 bits (Format, as in quant/gemv_formats.cuh) are unpacked into A fragments: a lane's 16 bytes hold 16 or 32 neighbours along k,
// PIECES of 8, and x lies in shared memory in that order. A group of 128 numbers of 4 bits is a step: its scale and zero come through the ring, too.
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
    int m, n, k;          // x (m, k), w (n, k)
    int tiles;            // of 16 rows of w
    int each, more;       // steps of k for each warp of the cluster; the first `more` have one more
    float eps;
    int x_stride;         // elements
    long long row_bytes;  // of w, a multiple of 64
};

// A weight's numbers as they are: 16 bits each.
template <class Element>
struct Whole {
    using T = Element;
    struct Table {};
    static constexpr bool GROUPED = false, ASYMMETRIC = false;
    static constexpr int PIECES = 1;
    static constexpr float OFFSET = 0.0f;
    static __device__ Table prepare(unsigned char*, const float*) { return {}; }
    static __device__ void arrange(uint4&) {}
    static __device__ void decode(const uint4& words, int, Table, unsigned (&pairs)[4]) {
        pairs[0] = words.x;
        pairs[1] = words.y;
        pairs[2] = words.z;
        pairs[3] = words.w;
    }
};
template <class Format>
struct Scaled {  // has it a scale a row?
    static constexpr bool value = !Format::GROUPED;
};
template <class T>
struct Scaled<Whole<T>> {
    static constexpr bool value = false;
};
template <class T>
__device__ __forceinline__ unsigned less(unsigned a, float b) {  // a pair less a number that is exact in T
    using Two = Vector<T, 2>;
    Two pair = reinterpret_cast<Two&>(a);
    pair.element[0] = __hsub(pair.element[0], from_float<T>(b));
    pair.element[1] = __hsub(pair.element[1], from_float<T>(b));
    return reinterpret_cast<unsigned&>(pair);
}

constexpr int ROWS_AT_ONCE = 4;  // of x, that a warp loads before it works on the first
constexpr int SUMS = 17;  // of a tile and a row of x: 16, and that of the squares of x

// scales: float32 (n,) of 8 bits, of 4 bits 32 (ASYMMETRIC) or 16 bits each, (k / 128, n). `shared` begins with the format's table, if it has one.
template <class Format, bool NORM, int TILES, int WARPS, int AHEAD, class Epilogue>
__device__ __forceinline__ void stream(const Epilogue& epilogue, const typename Format::T* x, const void* w, const void* scales, const float* codebook,
                                       const typename Format::T* norm_weight, const Sizes& sizes, unsigned char* shared, int table_bytes = 0) {
    using T = typename Format::T;
    constexpr int PIECES = Format::PIECES, FACTORS = Format::GROUPED ? 4 : 0;  // uint4s of a step that hold 16 factors
    constexpr bool SCALED = Scaled<Format>::value;
    const int m = sizes.m, lane = lane_id(), warp = warp_id(), r = lane / 4, j = lane % 4;
    const int splits = gridDim.y, part = blockIdx.y * WARPS + warp;
    const int first = part * sizes.each + min(part, sizes.more), steps = sizes.each + (part < sizes.more), most = sizes.each + (sizes.more > 0);
    const int tiles = sizes.tiles, own = 4 * PIECES * steps, reserved = 4 * PIECES * most;  // pieces of 8 of x

    uint4* const begin = reinterpret_cast<uint4*>(shared + table_bytes);
    uint4* const ring = begin + warp * AHEAD * (64 + FACTORS);  // of a step: 32 pieces of rows r, 32 of rows r + 8, their factors
    uint4* const all_staged = begin + WARPS * AHEAD * (64 + FACTORS);
    uint4* const staged = all_staged + warp * reserved * m;  // of step s, piece p, row i, neighbour j at ((s * PIECES + p) * m + i) * 4 + j
    uint4* const gains = all_staged + WARPS * reserved * m + warp * reserved;
    float* const of_warp = reinterpret_cast<float*>(all_staged + WARPS * reserved * (m + (NORM ? 1 : 0)));
    float* const of_block = of_warp + 2 * WARPS * m * SUMS;
    const auto place = [&](int i, int row) { return ((i / (4 * PIECES) * PIECES + i % PIECES) * m + row) * 4 + i / PIECES % 4; };

    int coming = blockIdx.x, ahead = 0;  // the tile and its step that are asked for next
    const uint4* source[2];
    const char* factor_source = nullptr;  // of lanes 0 to 15
    constexpr int FACTOR_BYTES = Format::ASYMMETRIC ? 4 : 2;
    const auto enter = [&]() {
        ahead = 0;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const long long row = min(epilogue.row(coming, h, r), sizes.n - 1);
            source[h] = reinterpret_cast<const uint4*>(static_cast<const char*>(w) + row * sizes.row_bytes) + 4 * first + j;
        }
        if (Format::GROUPED && lane < 16) {
            const long long row = min(epilogue.row(coming, lane / 8, lane % 8), sizes.n - 1);
            factor_source = static_cast<const char*>(scales) + (static_cast<long long>(first) * sizes.n + row) * FACTOR_BYTES / 4 * 4;
        }
    };
    const auto fetch = [&](int slot) {
        if (coming < tiles && ahead < steps) {
            uint4* const target = ring + slot * (64 + FACTORS);
            cp_async_stream(target + lane, source[0]);
            cp_async_stream(target + 32 + lane, source[1]);
            source[0] += 4;
            source[1] += 4;
            if (Format::GROUPED && lane < 16) {
                cp_async<4>(reinterpret_cast<unsigned*>(target + 64) + lane, factor_source);
                factor_source += static_cast<long long>(sizes.n) * FACTOR_BYTES;
            }
            if (++ahead == steps) {
                coming += gridDim.x;
                enter();
            }
        }
        cp_async_commit();
    };
    if (NORM) {
        for (int i = lane; i < own; i += 32) cp_async_l2(gains + i, reinterpret_cast<const uint4*>(norm_weight) + 4 * PIECES * first + i);
        cp_async_commit();
    }
    enter();
    for (int slot = 0; slot < AHEAD; ++slot) fetch(slot);
    const typename Format::Table table = Format::prepare(shared, codebook);
    grid_dependency_wait();
    grid_dependency_launch();
    const uint4* const x_part = reinterpret_cast<const uint4*>(x) + 4 * PIECES * first;
    const int x_row = sizes.x_stride / 8;
    if (NORM) {
        cp_async_wait<AHEAD>();  // the gains
        for (int base = 0; base < m; base += ROWS_AT_ONCE) {
            float squares[ROWS_AT_ONCE] = {};
            for (int i = lane; i < own; i += 32) {
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
                    staged[place(i, base + at)] = eights[at];
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
            for (int i = lane; i < own; i += 32) cp_async_l2(staged + place(i, row), x_part + static_cast<long long>(row) * x_row + i);
        }
        cp_async_wait_all();
    }
    __syncwarp();

    __shared__ float row_scales[2][16];
    int slot = 0;
    int turn = 0;  // which half of of_warp and of_block
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, turn ^= 1) {
        float total[TILES][4] = {}, other[TILES][4] = {};  // two sums, so that a product need not wait for the one before
        float row_scale = 0.0f;
        if (SCALED && threadIdx.x < 16) {
            row_scale = static_cast<const float*>(scales)[min(epilogue.row(tile, threadIdx.x / 8, threadIdx.x % 8), sizes.n - 1)];
        }
        for (int step = 0; step < steps; ++step) {
            cp_async_wait<AHEAD - 1>();
            const uint4* const arrived = ring + slot * (64 + FACTORS);
            const uint4 up = arrived[lane], low = arrived[32 + lane];
            float scale[2], zero[2];
            if (Format::GROUPED) {
                __syncwarp();  // the factors were copied by other lanes
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const unsigned word = reinterpret_cast<const unsigned*>(arrived + 64)[8 * h + r];
                    const bool high = !Format::ASYMMETRIC && epilogue.row(tile, h, r) % 2;
                    scale[h] = __uint_as_float(high ? word & 0xffff0000u : word << 16);
                    zero[h] = __uint_as_float(word & 0xffff0000u) + Format::OFFSET;
                }
            }
            float sum[TILES][4] = {};
#pragma unroll
            for (int piece = 0; piece < PIECES; ++piece) {
                unsigned a[2][4];
                Format::decode(up, piece, table, a[0]);
                Format::decode(low, piece, table, a[1]);
                if (Format::ASYMMETRIC) {
#pragma unroll
                    for (int i = 0; i < 8; ++i) a[i / 4][i % 4] = less<T>(a[i / 4][i % 4], zero[i / 4]);
                }
                const unsigned left[4] = {a[0][0], a[1][0], a[0][1], a[1][1]}, right[4] = {a[0][2], a[1][2], a[0][3], a[1][3]};
#pragma unroll
                for (int t = 0; t < TILES; ++t) {
                    uint4 b = make_uint4(0, 0, 0, 0);
                    if (8 * t + r < m) b = staged[((step * PIECES + piece) * m + 8 * t + r) * 4 + j];
                    Format::arrange(b);
                    const unsigned b_left[2] = {b.x, b.y}, b_right[2] = {b.z, b.w};
                    if constexpr (Format::GROUPED) {
                        mma_m16n8k16<T>(sum[t], left, b_left, sum[t]);
                        mma_m16n8k16<T>(sum[t], right, b_right, sum[t]);
                    } else {
                        mma_m16n8k16<T>(total[t], left, b_left, total[t]);
                        mma_m16n8k16<T>(other[t], right, b_right, other[t]);
                    }
                }
            }
            if (Format::GROUPED) {
#pragma unroll
                for (int i = 0; i < 4 * TILES; ++i) total[i / 4][i % 4] += scale[i % 4 / 2] * sum[i / 4][i % 4];
                __syncwarp();  // before other lanes overwrite the factors
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
        if (SCALED && threadIdx.x < 16) row_scales[turn][threadIdx.x] = row_scale;
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
            if (SCALED) {
                a *= row_scales[turn][at];
                b *= row_scales[turn][at + 8];
            }
            epilogue.put(row, tile, at, a, b);
        }
    }
}
