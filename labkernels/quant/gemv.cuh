// The stream that v2 and v3 share: a weight of 4 or 8 bits a number read once, at the speed of memory, against up to 8 rows of x.
//
// A warp owns 16 rows of the weight and a part of k, and walks along it in steps of 64 bytes a row: lane 4 r + j reads 16 bytes of row r and
// of row r + 8, the j-th of four neighbours. AHEAD steps are on their way at any time. What a lane has read becomes the A fragments of
// mma.sync without moving: which k a column of A stands for is nobody's business as long as B has the same one. B is x, from shared memory:
// a column a row of x. So the tensor cores do up to 8 rows of x for the price of one, and unpacking is all that the other units do.
//
// Groups of less than 128 end within a step, and their sums must not mix. They get columns of their own: with SPANS groups a step, column
// row * SPANS + g is a row of x, but zero outside group g.
//
// WARPS warps of a block, and the blocks of a cluster (gridDim.y), share k; their sums are added in order: the same bits each time. A block
// takes tiles of 16 rows in turn, with x in shared memory once and for all, and asks for the next tile before it has done with this one.
//
// The weight does not depend on what ran before. Launched early (programmatic dependent launch), the kernel asks for its first steps, and
// only then waits for the kernel that writes x.
#pragma once
#include "bits.cuh"
#include "cluster.cuh"
#include "convert.cuh"
#include "fence.cuh"
#include "mma.cuh"
#include "vector.cuh"
#include "warp.cuh"

#if defined(LK_EMULATOR) || __CUDA_ARCH__ >= 900
constexpr bool HAS_CLUSTERS = true;
#else
constexpr bool HAS_CLUSTERS = false;  // nor early launches: older GPUs do without both
#endif

// How the steps of a row are shared out: each part has `each`, the first `more` parts one more.
struct Parts {
    int each, more;
};

// Where pieces of x (8 of k, 16 bytes) lie in a warp's shared memory: the four that lanes 4r .. 4r+3 read at once are neighbours.
template <int PIECES, int ROWS>
__device__ __forceinline__ int piece_place(int step, int piece, int row, int j) { return ((step * PIECES + piece) * ROWS + row) * 4 + j; }

// What lane 4 r + j has of each tile of 8 columns: r is its column of B, and the sums of columns 2 j and 2 j + 1 end in it.
template <int PIECES, int SPANS, int ROWS>
struct Columns {
    static constexpr int TILES = ROWS * SPANS > 8 ? ROWS * SPANS / 8 : 1;  // of 8 columns
    static constexpr int COUNT = ROWS * SPANS > 1 ? 2 : 1;                 // of a tile's sums that a lane has use for
    static constexpr int NEXT = 8 / SPANS;                                 // rows of x from one tile to the next
    const uint4* b;              // the lane's column of B, of tile 0
    const float* sum_of[COUNT];  // the first step's sums of x, of the columns that end in the lane
    bool counts;                 // whether the lane's part of a step is in its column's group

    __device__ __forceinline__ Columns(const uint4* staged, const float* sums, int r, int j)
        : b(staged + piece_place<PIECES, ROWS>(0, 0, min(r / SPANS, ROWS - 1), j)), counts(SPANS == 1 || r % SPANS == j * SPANS / 4) {
#pragma unroll
        for (int c = 0; c < COUNT; ++c) sum_of[c] = sums + (2 * j + c) % SPANS * ROWS + min((2 * j + c) / SPANS, ROWS - 1);
    }
    __device__ __forceinline__ uint4 of_b(int tile, int step, int piece) const {
        return SPANS == 1 || counts ? b[piece_place<PIECES, ROWS>(step, piece, tile * NEXT, 0)] : make_uint4(0, 0, 0, 0);
    }
    __device__ __forceinline__ float sum_of_x(int tile, int c, int step) const { return sum_of[c][step * SPANS * ROWS + tile * NEXT]; }
};

// x's columns of `steps` steps from `first` on into shared memory, and for numbers with zeros the sum of each group of x. What lies
// beyond column k or row m is zero. ORDERED: each piece is in the order that Format asks for.
template <class Format, int SPANS, int ROWS, bool ORDERED, class T = typename Format::T>
__device__ void stage_x(uint4* staged, float* sums, const T* x, int m, int k, long long x_stride, int first, int steps, bool aligned) {
    constexpr int PIECES = Format::PIECES, LANES = 16 / SPANS;  // LANES hold a group between them
    constexpr bool SUMS = Format::ASYMMETRIC;
    const int pieces = steps * PIECES * 4, start = first * PIECES * 32;
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
        for (int base = 0; base < pieces; base += 32) {
            const int i = base + lane_id(), col = start + 8 * i;
            Vector<T, 8> eight;
            const T* source = x + row * x_stride + col;
            if (aligned && row < m && i < pieces && col + 8 <= k) {
                eight = *reinterpret_cast<const Vector<T, 8>*>(source);
            } else {
#pragma unroll
                for (int e = 0; e < 8; ++e) eight.element[e] = row < m && i < pieces && col + e < k ? source[e] : from_float<T>(0.0f);
            }
            if (i < pieces) {
                const int step = i / (4 * PIECES), j = i / PIECES % 4, piece = i % PIECES;
                uint4 ordered = *reinterpret_cast<const uint4*>(&eight);
                if (ORDERED) Format::arrange(ordered);
                staged[piece_place<PIECES, ROWS>(step, piece, row, j)] = ordered;
            }
            if (SUMS) {
                float sum = 0.0f;
#pragma unroll
                for (int e = 0; e < 8; ++e) sum += to_float(eight.element[e]);
#pragma unroll
                for (int distance = 1; distance < LANES; distance *= 2) sum += __shfl_xor_sync(FULL_WARP, sum, distance);
                if (i < pieces && i % LANES == 0) sums[i / LANES * ROWS + row] = sum;
            }
        }
    }
}

// What a Format says stands in gemv_formats.cuh.
template <class Format, int SPANS, int ROWS, int WARPS, int AHEAD>
__device__ __forceinline__ void stream(const typename Format::T* x, const unsigned char* packed, const void* scales, const float* codebook,
                                       typename Format::T* y, int m, int n, int k, long long x_stride, long long row_bytes, int groups,
                                       Parts parts, int aligned, int x_bytes, unsigned char* shared) {
    using T = typename Format::T;
    constexpr int PIECES = Format::PIECES;
    constexpr int TILES = Columns<PIECES, SPANS, ROWS>::TILES, COLUMNS = Columns<PIECES, SPANS, ROWS>::COUNT;
    constexpr int FACTORS = SPANS > 1 ? 2 : 1;  // groups that these columns belong to
    __shared__ float of_warp[2][WARPS][ROWS][16];
    __shared__ float of_block[8][ROWS][16];

    const int part = blockIdx.y * WARPS + warp_id(), lane = lane_id(), r = lane / 4, j = lane % 4;
    const int first = part * parts.each + min(part, parts.more), steps = parts.each + (part < parts.more);
    const int whole = static_cast<int>((row_bytes + 48 - 16 * j) / 64) - first;  // steps in which this lane has a part: not all have one of the last
    const int tiles = (n + 15) / 16;

    // What is asked for next: steps `ahead` .. `ahead` + AHEAD - 1 of this part of tile `coming`.
    int coming = blockIdx.x, ahead = 0;
    unsigned source[2];          // of its first step, in bytes from `packed`
    unsigned place[2][FACTORS];  // of a step's scales
    int group[FACTORS];
    const auto enter = [&]() {  // the tile `coming`, from its first step on
        ahead = 0;
#pragma unroll
        for (int c = 0; c < FACTORS; ++c) group[c] = first * SPANS + (SPANS > 1 ? (2 * j + c) % SPANS : 0);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = min(coming * 16 + r + 8 * h, n - 1);
            source[h] = row * static_cast<unsigned>(row_bytes) + first * 64 + 16 * j;
#pragma unroll
            for (int c = 0; c < FACTORS; ++c) place[h][c] = group[c] * n + row;
        }
    };

    uint4 words[AHEAD][2];
    unsigned factors[AHEAD][2][FACTORS];
    const auto fetch = [&](int slot) {
        const int step = coming < tiles ? ahead + slot : steps;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const unsigned back = step < whole ? 0 : 16 * j;  // behind the row's end stands what x's zeros meet: anything, here once more its start
            if (step < steps) words[slot][h] = __ldcs(reinterpret_cast<const uint4*>(packed + (source[h] + 64 * slot - back)));
        }
        if (!Format::GROUPED) return;
#pragma unroll
        for (int c = 0; c < FACTORS; ++c) {
            const bool inside = step < steps && (SPANS == 1 || group[c] < groups);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                factors[slot][h][c] = 0;
                if (inside && Format::ASYMMETRIC) factors[slot][h][c] = __ldg(static_cast<const unsigned*>(scales) + place[h][c]);
                if (inside && !Format::ASYMMETRIC) factors[slot][h][c] = __ldg(static_cast<const unsigned short*>(scales) + place[h][c]);
                place[h][c] += SPANS * n;
            }
            group[c] += SPANS;
        }
    };
    enter();
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) fetch(i);

    uint4* staged = reinterpret_cast<uint4*>(shared + warp_id() * x_bytes);
    const float* sums = reinterpret_cast<float*>(staged + steps * PIECES * ROWS * 4);
    const typename Format::Table table = Format::prepare(shared + WARPS * x_bytes, codebook);
    if constexpr (HAS_CLUSTERS) {
        grid_dependency_wait();
        grid_dependency_launch();  // the next kernel finds all that ran before this one done
    }
    stage_x<Format, SPANS, ROWS, false>(staged, const_cast<float*>(sums), x, m, k, x_stride, first, steps, aligned);
    __syncwarp();

    const Columns<PIECES, SPANS, ROWS> columns(staged, sums, r, j);

    int turn = 0;  // which of the two of_warp
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, turn ^= 1) {
        float total[TILES][4] = {};
        for (int base = 0; base < steps; base += AHEAD) {
            ahead += AHEAD;
#pragma unroll
            for (int h = 0; h < 2; ++h) source[h] += 64 * AHEAD;
            if (ahead >= steps) {
                coming += gridDim.x;
                enter();
            }
#pragma unroll
            for (int slot = 0; slot < AHEAD; ++slot) {
                if (base + slot < steps) {
                    float sum[TILES][4] = {};
#pragma unroll
                    for (int piece = 0; piece < PIECES; ++piece) {
                        unsigned a[2][4];
                        Format::decode(words[slot][0], piece, table, a[0]);
                        Format::decode(words[slot][1], piece, table, a[1]);
#pragma unroll
                        for (int t = 0; t < TILES; ++t) {
                            uint4 b = columns.of_b(t, base + slot, piece);
                            Format::arrange(b);
#pragma unroll
                            for (int half = 0; half < 2; ++half) {
                                const unsigned fragment[4] = {a[0][2 * half], a[1][2 * half], a[0][2 * half + 1], a[1][2 * half + 1]};
                                const unsigned column[2] = {half ? b.z : b.x, half ? b.w : b.y};
                                if (Format::GROUPED) mma_m16n8k16<T>(sum[t], fragment, column, sum[t]);
                                else mma_m16n8k16<T>(total[t], fragment, column, total[t]);
                            }
                        }
                    }
                    if (Format::GROUPED) {
#pragma unroll
                        for (int h = 0; h < 2; ++h) {
#pragma unroll
                            for (int c = 0; c < COLUMNS; ++c) {
                                const unsigned word = factors[slot][h][c % FACTORS];
                                const float scale = __uint_as_float(word << 16), zero = __uint_as_float(word & 0xffff0000u) + Format::OFFSET;
#pragma unroll
                                for (int t = 0; t < TILES; ++t) {
                                    float value = sum[t][2 * h + c];
                                    if (Format::ASYMMETRIC) value -= zero * columns.sum_of_x(t, c, base + slot);
                                    total[t][2 * h + c] += scale * value;
                                }
                            }
                        }
                    }
                }
                fetch(slot);
            }
        }

        // A row of x has SPANS columns: the sums of its groups meet, two in this lane, four in two neighbours.
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float left = total[t][2 * h];
                if (SPANS > 1) left += total[t][2 * h + 1];
                if (SPANS == 4) left += __shfl_xor_sync(FULL_WARP, left, 1);
                const int row = (8 * t + 2 * j) / SPANS;
                if (row < ROWS && 2 * j % SPANS == 0) of_warp[turn][warp_id()][row][r + 8 * h] = left;
                if (SPANS == 1 && row + 1 < ROWS) of_warp[turn][warp_id()][row + 1][r + 8 * h] = total[t][2 * h + 1];
            }
        }
        __syncthreads();

        const bool split = HAS_CLUSTERS && gridDim.y > 1;
        if constexpr (HAS_CLUSTERS) {
            if (split) {  // all have begun: now their shared memory is there
                cluster_arrive_relaxed();
                cluster_wait();
            }
        }
        for (int i = threadIdx.x; i < 16 * m; i += 32 * WARPS) {
            float value = 0.0f;
#pragma unroll
            for (int warp = 0; warp < WARPS; ++warp) value += of_warp[turn][warp][i / 16][i % 16];
            float* target = &of_block[blockIdx.y][i / 16][i % 16];
            if constexpr (HAS_CLUSTERS) {
                if (split) target = map_shared_rank(target, 0);
            }
            *target = value;
        }
        if constexpr (HAS_CLUSTERS) {
            if (split) cluster_sync();
        }
        for (int i = threadIdx.x; i < 16 * m; i += 32 * WARPS) {  // by the thread that wrote it, or after the cluster's barrier
            const int row = tile * 16 + i % 16;
            if (row >= n || blockIdx.y > 0) continue;
            float value = of_block[0][i / 16][i % 16];
            for (int block = 1; block < static_cast<int>(gridDim.y); ++block) value += of_block[block][i / 16][i % 16];
            if (!Format::GROUPED) value *= static_cast<const float*>(scales)[row];
            y[static_cast<long long>(i / 16) * n + row] = from_float<T>(value);
        }
    }
}
