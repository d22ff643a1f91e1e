// The stream of v3: a weight (n, k) of 16, 8 or 4 bits a number read once, at the speed of memory, against up to 64 rows of x.
//
// A block works on WARPS / SHARE tiles of 16 rows at a time; SHARE of its warps share a tile's k. A warp owns 16 rows of the weight and a part of k, and walks along it in steps of 64 bytes a row: lane 4 r + j copies 16 bytes of row r and of
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
// Whole numbers of 8 and 4 bits meet x in whole numbers, too (Bytes and Nibbles, digits.cuh). Others (Format, as in quant/gemv_formats.cuh) are unpacked into A fragments: a lane's 16 bytes hold 16 or 32 neighbours along k,
// PIECES of 8, and x lies in shared memory in that order. A group of 128 numbers of 4 bits is a step: its scale and zero come through the ring, too.
//
// Launched early (programmatic dependent launch), a block asks for its first AHEAD steps, which no kernel before it writes, lets the next kernel begin
// to do the same, and only then waits. So several kernels' weights are on their way, as far as there is room on the SM: what it needs no ring for is
// somebody else's. NEXT_AT_ONCE = false holds the next kernel back until what ran before is there: for one that reads something of it without waiting.
//
// Kernels this short may run on a cold instruction cache, 16 bytes an instruction. So loops are not unrolled that gain nothing by it, and one row of x
// has code of its own (TILES = 0): a third of the code, a third fewer registers, and 4% of a token at int4 less.
#pragma once
#include "cluster.cuh"
#include "convert.cuh"
#include "cp_async.cuh"
#include "digits.cuh"
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
template <class Format>
struct AsDigits {  // is x rounded to whole numbers, as in digits.cuh?
    static constexpr bool value = false;
};
template <class T>
struct AsDigits<Bytes<T>> {
    static constexpr bool value = true;
};
template <class T>
struct AsDigits<Nibbles<T>> {
    static constexpr bool value = true;
};
template <class T>
__device__ __forceinline__ unsigned less(unsigned a, float b) {  // a pair less a number that is exact in T
    using Two = Vector<T, 2>;
    Two pair = reinterpret_cast<Two&>(a);
    pair.element[0] = __hsub(pair.element[0], from_float<T>(b));
    pair.element[1] = __hsub(pair.element[1], from_float<T>(b));
    return reinterpret_cast<unsigned&>(pair);
}

constexpr int SUMS = 17;  // of a tile and a row of x: 16, and that of the squares of x

// scales: float32 (n,) of 8 bits, of 4 bits 32 (ASYMMETRIC) or 16 bits each, (k / 128, n). `shared` begins with the format's table, if it has one.
template <class Format, bool NORM, int TILES, int WARPS, int SHARE, int AHEAD, bool NEXT_AT_ONCE = true, class Epilogue>
__device__ __forceinline__ void stream(const Epilogue& epilogue, const typename Format::T* x, const void* w, const void* scales, const float* codebook,
                                       const typename Format::T* norm_weight, const Sizes& sizes, unsigned char* shared, int table_bytes = 0) {
    using T = typename Format::T;
    constexpr bool ONE_ROW = TILES == 0;  // of x: the same with less code, which every kernel fetches anew
    constexpr int PIECES = Format::PIECES, FACTORS = Format::GROUPED ? 4 : 0;  // uint4s of a step that hold 16 factors
    constexpr bool SCALED = Scaled<Format>::value, DIGITS = AsDigits<Format>::value;
    constexpr int GROUPS = WARPS / SHARE;  // tiles at a time
    constexpr int COLUMNS = ONE_ROW ? 1 : TILES, ROWS_AT_ONCE = ONE_ROW ? 1 : 4;  // rows of x that a warp loads before it works on the first
    const int m = ONE_ROW ? 1 : sizes.m, lane = lane_id(), warp = warp_id(), r = lane / 4, j = lane % 4, group = warp / SHARE, member = warp % SHARE;
    const int splits = gridDim.y, tiles = sizes.tiles;
    const auto first_of = [&](int part) { return part * sizes.each + min(part, sizes.more); };  // step
    const int block_first = first_of(blockIdx.y * SHARE), block_steps = first_of((blockIdx.y + 1) * SHARE) - block_first;
    const int first = first_of(blockIdx.y * SHARE + member), steps = first_of(blockIdx.y * SHARE + member + 1) - first;
    const int own = 4 * PIECES * block_steps, most = SHARE * (sizes.each + (sizes.more > 0)), reserved = 4 * PIECES * most;  // pieces of 8 of x

    uint4* const begin = reinterpret_cast<uint4*>(shared + table_bytes);
    uint4* const ring = begin + warp * AHEAD * (64 + FACTORS);  // of a step: 32 pieces of rows r, 32 of rows r + 8, their factors
    uint4* const staged = begin + WARPS * AHEAD * (64 + FACTORS);  // of step s, piece p, row i, neighbour j at ((s * PIECES + p) * m + i) * 4 + j
    uint4* const gains = staged + reserved * m;
    GroupFactor* const group_factors = reinterpret_cast<GroupFactor*>(gains + (NORM ? reserved : 0));  // of DIGITS: of step s, row i at s * m + i
    float* const of_warp = reinterpret_cast<float*>(group_factors + (DIGITS ? most * m : 0));
    float* const of_block = of_warp + 2 * WARPS * m * SUMS;
    const auto place = [&](int i, int row) { return ((i / (4 * PIECES) * PIECES + i % PIECES) * m + row) * 4 + i / PIECES % 4; };
    const auto digits_at = [&](int step, int pair, int row) { return staged + ((step * (PIECES / 2) + pair) * m + row) * 8; };  // of pieces 2 pair, 2 pair + 1

    int coming = blockIdx.x * GROUPS + group, ahead = 0;  // the tile and its step that are asked for next
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
                coming += gridDim.x * GROUPS;
                enter();
            }
        }
        cp_async_commit();
    };
    if (NORM) {
#pragma unroll 1
        for (int i = threadIdx.x; i < own; i += 32 * WARPS) {
            cp_async_l2(gains + i, reinterpret_cast<const uint4*>(norm_weight) + 4 * PIECES * block_first + i);
        }
        cp_async_commit();
    }
    enter();
#pragma unroll 1
    for (int slot = 0; slot < AHEAD; ++slot) fetch(slot);
    if (NEXT_AT_ONCE) grid_dependency_launch();
    const typename Format::Table table = Format::prepare(shared, codebook);
    const int item = 32 * member + lane;  // of the 8 m that the group puts together
    const auto scale_of = [&](int tile) {
        const bool mine = SCALED && item < 16 && tile < tiles;
        return mine ? static_cast<const float*>(scales)[min(epilogue.row(tile, item / 8, item % 8), sizes.n - 1)] : 0.0f;
    };
    float row_scale = scale_of(blockIdx.x * GROUPS + group);
    grid_dependency_wait();
    if (!NEXT_AT_ONCE) grid_dependency_launch();
    typename Epilogue::Held held = {};  // of the tile to come, asked for long before it is needed
    const auto hold = [&](int tile) {
        if (tile < tiles && item < 8 * m) held = epilogue.hold(item / 8, tile, item % 8);
    };
    hold(blockIdx.x * GROUPS + group);
    const uint4* const x_part = reinterpret_cast<const uint4*>(x) + 4 * PIECES * block_first;
    const int x_row = sizes.x_stride / 8;
    if (NORM || DIGITS) {
        if (NORM) cp_async_wait<AHEAD>();  // the gains
        for (int base = 0; base < m; base += ROWS_AT_ONCE) {
            float squares[ROWS_AT_ONCE] = {};
#pragma unroll 1
            for (int begin = 32 * warp; begin < own; begin += 32 * WARPS) {
                const int i = begin + lane;
                uint4 eights[ROWS_AT_ONCE], ones = {};
#pragma unroll
                for (int at = 0; at < ROWS_AT_ONCE; ++at) {
                    if (base + at < m && i < own) eights[at] = x_part[static_cast<long long>(base + at) * x_row + i];
                }
                if (NORM && i < own) ones = gains[i];
                const Vector<T, 8> gain = reinterpret_cast<const Vector<T, 8>&>(ones);
#pragma unroll
                for (int at = 0; at < ROWS_AT_ONCE; ++at) {
                    if (base + at >= m) break;
                    Vector<T, 8>& values = reinterpret_cast<Vector<T, 8>&>(eights[at]);
                    float scaled[8];
#pragma unroll
                    for (int e = 0; e < 8; ++e) {
                        scaled[e] = i < own ? to_float(values.element[e]) : 0.0f;
                        if (NORM) {
                            squares[at] += scaled[e] * scaled[e];
                            scaled[e] *= to_float(gain.element[e]);
                        }
                    }
                    if constexpr (DIGITS) {
                        uint2 high, low;
                        const GroupFactor factor = digits_of<Format>(scaled, high, low);
                        if (i >= own) continue;
                        uint2* const target = reinterpret_cast<uint2*>(digits_at(i / (4 * PIECES), i % PIECES / 2, base + at) + i / PIECES % 4 * 2);
                        target[i % 2] = high;
                        target[2 + i % 2] = low;
                        if (i % (4 * PIECES) == 0) group_factors[i / (4 * PIECES) * m + base + at] = factor;
                    } else if (i < own) {
#pragma unroll
                        for (int e = 0; e < 8; ++e) values.element[e] = from_float<T>(scaled[e]);
                        staged[place(i, base + at)] = eights[at];
                    }
                }
            }
#pragma unroll
            for (int at = 0; at < ROWS_AT_ONCE && NORM; ++at) {
                if (base + at >= m) break;
                const float sum = warp_sum(squares[at]);
                if (lane < 2) of_warp[((lane * WARPS + warp) * m + base + at) * SUMS + 16] = sum;
            }
        }
    } else {
        for (int row = 0; row < m; ++row) {
#pragma unroll 1
            for (int i = threadIdx.x; i < own; i += 32 * WARPS) cp_async_l2(staged + place(i, row), x_part + static_cast<long long>(row) * x_row + i);
        }
        cp_async_wait_all();
    }
    __syncthreads();

    __shared__ float row_scales[2][GROUPS][16];
    int slot = 0;
    int turn = 0;  // which half of of_warp and of_block
    for (int first_tile = blockIdx.x * GROUPS; first_tile < tiles; first_tile += gridDim.x * GROUPS, turn ^= 1) {
        const int tile = first_tile + group;
        const bool inside = tile < tiles;
        float total[COLUMNS][4] = {}, other[COLUMNS][4] = {};  // two sums, so that a product need not wait for the one before
#pragma unroll 1
        for (int step = first - block_first; inside && step < first - block_first + steps; ++step) {
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
                    zero[h] = __uint_as_float(word & 0xffff0000u);
                    if constexpr (!DIGITS) zero[h] += Format::OFFSET;
                }
            }
            if constexpr (DIGITS) {
                int whole[COLUMNS][4] = {};
#pragma unroll
                for (int pair = 0; pair < PIECES / 2; ++pair) {
                    unsigned first_piece[4], second_piece[4];
                    Format::fragment(up, low, 2 * pair, first_piece);
                    Format::fragment(up, low, 2 * pair + 1, second_piece);
#pragma unroll
                    for (int t = 0; t < COLUMNS; ++t) {
                        uint4 b = make_uint4(0, 0, 0, 0);
                        if (4 * t + r / 2 < m) b = digits_at(step, pair, 4 * t + r / 2)[2 * j + r % 2];
                        const unsigned b_first[2] = {b.x, b.y}, b_second[2] = {b.z, b.w};
                        mma_m16n8k32<signed char>(whole[t], first_piece, b_first, whole[t]);
                        mma_m16n8k32<signed char>(whole[t], second_piece, b_second, whole[t]);
                    }
                }
#pragma unroll
                for (int t = 0; t < COLUMNS; ++t) {
                    if (4 * t + j >= m) continue;
                    const GroupFactor factor = group_factors[step * m + 4 * t + j];
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        float value = factor.scale * static_cast<float>(256 * whole[t][2 * h] + whole[t][2 * h + 1]);
                        if (Format::GROUPED) value = scale[h] * (value - zero[h] * factor.sum);
                        total[t][h] += value;
                    }
                }
            } else {
                float sum[COLUMNS][4] = {};
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
                    for (int t = 0; t < COLUMNS; ++t) {
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
                    for (int i = 0; i < 4 * COLUMNS; ++i) total[i / 4][i % 4] += scale[i % 4 / 2] * sum[i / 4][i % 4];
                }
            }
            if (Format::GROUPED) __syncwarp();  // before other lanes overwrite the factors
            fetch(slot);
            slot = slot + 1 == AHEAD ? 0 : slot + 1;
        }
#pragma unroll
        for (int t = 0; t < COLUMNS; ++t) {
#pragma unroll
            for (int i = 0; i < (DIGITS ? 2 : 4); ++i) {
                const int row = DIGITS ? 4 * t + j : 8 * t + 2 * j + i % 2, h = DIGITS ? i : i / 2;
                if (row < m) of_warp[((turn * WARPS + warp) * m + row) * SUMS + r + h * 8] = total[t][i] + (DIGITS ? 0.0f : other[t][i]);
            }
        }
        if (SCALED && item < 16) row_scales[turn][group][item] = row_scale;
        if (SHARE > 1) __syncthreads();
        else __syncwarp();
        const auto of_all_warps = [&](int row, int at) {
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < SHARE; ++i) sum += of_warp[((turn * WARPS + group * SHARE + i) * m + row) * SUMS + at];
            return sum;
        };
        const auto squares_of_block = [&](int row) {
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < WARPS; ++i) sum += of_warp[((turn * WARPS + i) * m + row) * SUMS + 16];
            return sum;
        };
        const auto of_all_blocks = [&](int row, int at) {
            float sum = 0.0f;
#pragma unroll 1
            for (int i = 0; i < splits; ++i) sum += of_block[((turn * splits + i) * m + row) * SUMS + at];
            return sum;
        };
        const bool split = HAS_CLUSTERS && splits > 1;
        if constexpr (HAS_CLUSTERS) {
            if (split) {
                if (first_tile == blockIdx.x) cluster_sync();  // all have begun: now their shared memory is there
                for (int i = threadIdx.x; i < SUMS * m; i += 32 * WARPS) {
                    if (!NORM && i % SUMS == 16) continue;
                    *map_shared_rank(&of_block[(turn * splits + blockIdx.y) * m * SUMS + i], 0) =
                        i % SUMS == 16 ? squares_of_block(i / SUMS) : of_all_warps(i / SUMS, i % SUMS);
                }
                cluster_sync();
                if (blockIdx.y > 0) continue;
            }
        }
#pragma unroll 1
        for (int i = item; inside && i < 8 * m; i += 32 * SHARE) {
            const int row = i / 8, at = i % 8;
            float a = split ? of_all_blocks(row, at) : of_all_warps(row, at), b = split ? of_all_blocks(row, at + 8) : of_all_warps(row, at + 8);
            if (NORM) {
                const float squares = split ? of_all_blocks(row, 16) : squares_of_block(row), scale = rsqrtf(squares / sizes.k + sizes.eps);
                a *= scale;
                b *= scale;
            }
            if (SCALED) {
                a *= row_scales[turn][group][at];
                b *= row_scales[turn][group][at + 8];
            }
            epilogue.put(i == item ? held : epilogue.hold(row, tile, at), row, tile, at, a, b);
        }
        hold(tile + gridDim.x * GROUPS);
        row_scale = scale_of(tile + gridDim.x * GROUPS);
    }
}
