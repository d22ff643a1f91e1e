// The stream that v2 and v3 share: a weight of 4 or 8 bits a number read once, at the speed of memory, against up to 8 rows of x.
//
// A warp owns 16 rows of the weight and a part of k, and walks along it in steps of 64 bytes a row: lane 4 r + j reads 16 bytes of row r and
// of row r + 8, the j-th of four neighbours. AHEAD steps are on their way at any time. What a lane has read becomes the A fragments of
// mma.sync without moving: which k a column of A stands for is nobody's business as long as B has the same one. B is x, from shared memory:
// a column a row of x. So the tensor cores do up to 8 rows of x for the price of one, and unpacking is all that the other units do.
//
// Groups of less than 128 end within a step, and their sums must not mix. They get columns of their own: with SPANS groups a step, column
// m * SPANS + g is row m of x, but zero outside group g.
//
// WARPS warps of a block, and the blocks of a cluster (gridDim.y), share k; their sums are added in order: the same bits each time.
#pragma once
#include "bits.cuh"
#include "cluster.cuh"
#include "convert.cuh"
#include "cp_async.cuh"
#include "mma.cuh"
#include "warp.cuh"

template <class T> struct IsHalf { static constexpr bool value = false; };
template <> struct IsHalf<__half> { static constexpr bool value = true; };

// Where pieces of x (8 of k, 16 bytes) lie in a warp's shared memory: the four that lanes 4r .. 4r+3 read at once are neighbours.
__device__ inline int piece_place(int step, int piece, int m, int rows, int j, int pieces) { return ((step * pieces + piece) * rows + m) * 4 + j; }

// Fetch x's columns of the steps first .. last - 1 of this warp. k beyond `k` is zero.
template <class T, int PIECES>
__device__ void stage_x(uint4* staged, const T* x, int m, int k, long long x_stride, int first, int last, bool aligned) {
    constexpr int SPAN = 32 * PIECES;
    const int each = (last - first) * PIECES * 4;
    for (int i = lane_id(); i < each * m; i += 32) {
        const int row = i / each, rest = i % each, step = rest / (4 * PIECES), j = rest / PIECES % 4, piece = rest % PIECES;
        const int col = (first + step) * SPAN + (j * PIECES + piece) * 8;
        const int valid = min(8, max(0, k - col));
        uint4* target = &staged[piece_place(step, piece, row, m, j, PIECES)];
        const T* source = x + row * x_stride + col;
        if (aligned) {
            cp_async<16>(target, valid ? source : x, 2 * valid);
        } else {
            for (int e = 0; e < 8; ++e) reinterpret_cast<T*>(target)[e] = e < valid ? source[e] : from_float<T>(0.0f);
        }
    }
    cp_async_commit();
}

// The scales that a lane needs in a step: of its two rows, in the groups of the two columns of its sums.
template <int SCALE_WORDS, int SPANS>
struct StepScales {
    unsigned word[2][SPANS == 1 ? 1 : 2];
};

// What a Format says:
//   T, PIECES (8 of k that 16 bytes hold: 4 or 2), GROUPED, SCALE_BYTES (of a group), OFFSET (what all its numbers are too large by, or 0)
//   prepare(shared, codebook): once a block, all threads; returns after __syncthreads if it wrote anything
//   decode(words of one row, piece, pairs): 4 registers, k pairs in the order that arrange(x words) brings x into
template <class Format, int SPANS, int TILES, int WARPS, int AHEAD>
__device__ void stream(const typename Format::T* x, const unsigned char* packed, const void* scales, const float* codebook,
                       typename Format::T* y, int m, int n, int k, long long x_stride, long long row_bytes, int groups, int aligned,
                       int x_bytes, unsigned char* shared) {
    using T = typename Format::T;
    constexpr int PIECES = Format::PIECES;
    __shared__ float of_warp[WARPS][8][16];
    __shared__ float of_block[8][8][16];

    const int steps = static_cast<int>((row_bytes + 63) / 64), parts = gridDim.y * WARPS, part = blockIdx.y * WARPS + warp_id();
    const int first = static_cast<int>(static_cast<long long>(steps) * part / parts);
    const int last = static_cast<int>(static_cast<long long>(steps) * (part + 1) / parts);
    const int lane = lane_id(), r = lane / 4, j = lane % 4;
    const int top = blockIdx.x * 16 + r;
    const int rows[2] = {min(top, n - 1), min(top + 8, n - 1)};
    const unsigned char* source[2] = {packed + rows[0] * row_bytes + 16 * j, packed + rows[1] * row_bytes + 16 * j};

    // Which group of a step this lane's columns of sums belong to.
    const int group_of_column[2] = {SPANS == 1 ? 0 : 2 * j % SPANS, SPANS == 1 ? 0 : (2 * j + 1) % SPANS};

    uint4 words[AHEAD][2];
    StepScales<Format::SCALE_BYTES, SPANS> factors[AHEAD];
    const auto fetch = [&](int step, int slot) {
        const bool inside = step < last && step * 64LL + 16 * j < row_bytes;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            words[slot][h] = inside ? __ldcs(reinterpret_cast<const uint4*>(source[h] + step * 64LL)) : make_uint4(0, 0, 0, 0);
            if (Format::GROUPED) {
#pragma unroll
                for (int c = 0; c < (SPANS == 1 ? 1 : 2); ++c) {
                    const long long group = min(step * SPANS + group_of_column[c], groups - 1);
                    const long long place = group * n + rows[h];
                    if (Format::SCALE_BYTES == 4) factors[slot].word[h][c] = step < last ? __ldg(static_cast<const unsigned*>(scales) + place) : 0;
                    else factors[slot].word[h][c] = step < last ? __ldg(static_cast<const unsigned short*>(scales) + place) : 0;
                }
            }
        }
    };
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) fetch(first + i, i);

    uint4* staged = reinterpret_cast<uint4*>(shared + warp_id() * x_bytes);
    stage_x<T, PIECES>(staged, x, m, k, x_stride, first, last, aligned);
    const typename Format::Table table = Format::prepare(shared + WARPS * x_bytes, codebook);
    cp_async_wait_all();
    __syncwarp();

    int of_x[TILES];  // the row of x that is this lane's column of B
    bool counts[TILES];
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
        const int column = 8 * t + r;
        of_x[t] = min(column / SPANS, m - 1);
        counts[t] = SPANS == 1 || column % SPANS == j * SPANS / 4;
    }

    float total[TILES][4] = {};
    for (int base = first; base < last; base += AHEAD) {
#pragma unroll
        for (int slot = 0; slot < AHEAD; ++slot) {
            if (base + slot < last) {
                float sum[TILES][4] = {}, plain[TILES][4] = {};  // of this step: products with the weight; of x alone
#pragma unroll
                for (int piece = 0; piece < PIECES; ++piece) {
                    unsigned a[2][4];
                    Format::decode(words[slot][0], piece, table, a[0]);
                    Format::decode(words[slot][1], piece, table, a[1]);
#pragma unroll
                    for (int t = 0; t < TILES; ++t) {
                        uint4 b = staged[piece_place(base + slot - first, piece, of_x[t], m, j, PIECES)];
                        if (SPANS > 1 && !counts[t]) b = make_uint4(0, 0, 0, 0);
                        Format::arrange(b);
#pragma unroll
                        for (int half = 0; half < 2; ++half) {
                            const unsigned fragment[4] = {a[0][2 * half], a[1][2 * half], a[0][2 * half + 1], a[1][2 * half + 1]};
                            const unsigned column[2] = {half ? b.z : b.x, half ? b.w : b.y};
                            constexpr unsigned one = IsHalf<T>::value ? 0x3c003c00u : 0x3f803f80u;  // twice
                            const unsigned ones[4] = {one, one, one, one};
                            if (Format::GROUPED) mma_m16n8k16<T>(sum[t], fragment, column, sum[t]);
                            else mma_m16n8k16<T>(total[t], fragment, column, total[t]);
                            if (Format::ASYMMETRIC) mma_m16n8k16<T>(plain[t], ones, column, plain[t]);
                        }
                    }
                }
                if (Format::GROUPED) {
#pragma unroll
                    for (int t = 0; t < TILES; ++t) {
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            const unsigned word = factors[slot].word[i / 2][SPANS == 1 ? 0 : i % 2];
                            const float scale = __uint_as_float(word << 16), zero = __uint_as_float(word & 0xffff0000u);
                            const float value = Format::ASYMMETRIC ? sum[t][i] - (Format::OFFSET + zero) * plain[t][i] : sum[t][i];
                            total[t][i] += scale * value;
                        }
                    }
                }
            }
            fetch(base + AHEAD + slot, slot);
        }
    }

    // A row of x has SPANS columns: the sums of its groups meet, two in this lane, four in two neighbours.
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float left = total[t][2 * h], right = total[t][2 * h + 1];
            if (SPANS > 1) left += right;
            if (SPANS == 4) left += __shfl_xor_sync(FULL_WARP, left, 1);
            const int row_of_x = (8 * t + 2 * j) / SPANS;
            if (row_of_x < 8) of_warp[warp_id()][row_of_x][r + 8 * h] = left;  // with four spans two lanes write the same
            if (SPANS == 1) of_warp[warp_id()][row_of_x + 1][r + 8 * h] = right;
        }
    }
    __syncthreads();

    if (gridDim.y > 1) cluster_sync();  // all have begun: now their shared memory is there
    for (int i = threadIdx.x; i < 16 * m; i += 32 * WARPS) {
        float value = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) value += of_warp[warp][i / 16][i % 16];
        float* target = &of_block[blockIdx.y][i / 16][i % 16];
        *(gridDim.y > 1 ? map_shared_rank(target, 0) : target) = value;
    }
    if (gridDim.y > 1) cluster_sync();
    if (blockIdx.y > 0) return;
    for (int i = threadIdx.x; i < 16 * m; i += 32 * WARPS) {  // the thread that wrote it, or after the cluster's barrier
        const int row = blockIdx.x * 16 + i % 16;
        if (row >= n) continue;
        float value = 0.0f;
        for (int block = 0; block < static_cast<int>(gridDim.y); ++block) value += of_block[block][i / 16][i % 16];
        if (!Format::GROUPED) value *= static_cast<const float*>(scales)[row];
        y[static_cast<long long>(i / 16) * n + row] = from_float<T>(value);
    }
}
