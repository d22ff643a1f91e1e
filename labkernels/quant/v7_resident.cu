// Quantised matmul, v7: x stays in registers. Up to 16 rows of x on Hopper (sm_90a), every scheme.
//   Idea      Of 16 rows of x a warp's share of k, 256 numbers a row, is 64 registers a lane: the B fragments of all its mma, loaded once,
//             straight from memory. W streams past them as in v6, 32 rows at a time, into slots of shared memory that only this warp reads, and
//             comes from there by ldmatrix: lane t of a row has 8 neighbours along k in a word, where x's fragment has the same. So nothing is
//             staged, sorted or read twice, and warps wait for each other only to add up: those of a block in shared memory, and then those
//             of a team of blocks.
//             What zeros take off is the zero times the sum of x, which mma gives as well: with ones for W.
//             A block takes less than half of an SM: the next kernel's, launched early, has its slots full when this one ends.
//             Blocks that share k meet in a cluster if they are two, else in memory: clusters of four and more do not fit into what is
//             left of the groups of SMs, and come in two waves.
//   Predicts  230 instructions for 4096 numbers, 2.6 us for 11008 x 4096, which takes 5.3 us to read; three latencies stand around them: x,
//             the sums of the block, those of the team.
//   Measured  data/measured/h200/quant_matmul.csv: 11008 x 4096 in int4: 4 rows of x 12.1 (v6) -> 10.6 us (cuBLAS with a bf16 weight 28.6), 16 rows
//             14.8 (v5) -> 12.9 (28.5); 28672 x 8192, 16 rows 54.6 -> 41.2 (120). Nothing gained: one row, 10.3 (v6 9.6); 4096 x 11008, 16 rows,
//             14.0 (v5 13.9); 16 rows in fp8, 18.5 (v5 16.1).
//   Wastes    It takes twice what reading takes: nothing of x is there before the kernel before has ended, and W's first steps wait for it.
//             More than 16 rows of x do not fit.
#include "cluster.cuh"
#include "convert.cuh"
#include "gemv_formats.cuh"
#include "ldmatrix.cuh"
#include "mma.cuh"
#include "tma.cuh"

template <class Element> using Codebook = Codes<Element, false, Bank>;

// A warp's share of k: UNITS times 128 bytes of a row of W. A slot holds it of a step's rows, swizzled; their scales stand elsewhere.
template <class Format, int GROUP_SIZE, int UNITS, int ROWS>
struct Share {
    static constexpr bool FOUR_BIT = Format::PIECES == 4;
    static constexpr int UNIT = FOUR_BIT ? 256 : 128, PIECES = UNITS * UNIT / 32;  // numbers of a row; pieces of 32, two mma deep
    static constexpr int GROUPS = Format::GROUPED ? UNITS * UNIT / (GROUP_SIZE > 0 ? GROUP_SIZE : 1) : 1;
    static constexpr int UNIT_BYTES = ROWS * 128, W_BYTES = UNITS * UNIT_BYTES;
    static constexpr int SCALE_BYTES = !Format::GROUPED ? 0 : GROUPS * ROWS * (Format::ASYMMETRIC ? 4 : 2), SCALE_PLACE = (SCALE_BYTES + 127) / 128 * 128;
};

// x, from `source` on, as B fragments: of column lane / 4, the lane's k of each piece. Beyond `left` numbers, a multiple of 8, there are zeros.
template <class Format, int PIECES, class T = typename Format::T>
__device__ __forceinline__ void load_x(uint4 (&b)[PIECES], const T* source, int left) {
    const int t = lane_id() % 4;
#pragma unroll
    for (int i = 0; i < PIECES; ++i) {
        b[i] = make_uint4(0, 0, 0, 0);
        if (Format::PIECES == 4) {
            if (32 * i + 8 * t < left) b[i] = *reinterpret_cast<const uint4*>(source + 32 * i + 8 * t);
        } else {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int at = 32 * i + 16 * half + 4 * t;
                const uint2 four = at < left ? *reinterpret_cast<const uint2*>(source + at) : make_uint2(0, 0);
                if (half == 0) b[i].x = four.x, b[i].y = four.y;
                else b[i].z = four.x, b[i].w = four.y;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < PIECES; ++i) Format::arrange(b[i]);
}

// y = x w^T for up to 8 COLUMNS rows of x, which lie on multiples of 16 bytes, k being a multiple of 8. w, scales: tensor maps of W as it is
// stored, in boxes of a step's 16 TILES rows x 128 bytes, swizzled, and of (groups, n) in boxes of Share::GROUPS x 16 TILES. Launch (SPLITS,
// teams) blocks: those of a team share k, and take the steps `team`, team + teams, ... They meet in a cluster of SPLITS if CLUSTERED, else in
// the workspace, (teams, SPLITS, most steps of a team, 32 TILES COLUMNS) float4, where counters, zeros before and afterwards, say who is last.
// Dynamic shared memory: WARPS * AHEAD * (W_BYTES + SCALE_PLACE), 32 KB of a codebook, 512 TILES COLUMNS bytes for each of WARPS * BATCH steps,
// and of a team's steps if CLUSTERED.
template <template <class> class Of, class T, int GROUP_SIZE, int COLUMNS, int TILES, int UNITS, int WARPS, int AHEAD, int BATCH, int SPLITS,
          bool CLUSTERED>
__global__ void __launch_bounds__(32 * WARPS, WARPS > 8 ? 1 : 2)
    quant_matmul_resident(const T* x, const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap scales, const float* row_scales,
                          const float* codebook, T* y, int m, int n, int k, long long x_stride, int units, float4* workspace, int* counters) {
    using Format = Of<T>;
    using Part = Share<Format, GROUP_SIZE, UNITS, 16 * TILES>;
    constexpr int ROWS = 16 * TILES, PIECES = Part::PIECES, GROUPS = Part::GROUPS, OF_GROUP = PIECES / GROUPS;
    constexpr int PLACES = TILES * COLUMNS * 32;  // of a step's sums, four each
    constexpr bool HAS_TABLE = Part::FOUR_BIT && !Format::ASYMMETRIC, FEW_SUMS = GROUPS * COLUMNS <= 4;
    extern __shared__ __align__(1024) unsigned char shared[];
    __shared__ float2 sums_of_x[FEW_SUMS ? 1 : WARPS][GROUPS][COLUMNS][4];
    __shared__ Mbarrier barriers[WARPS][AHEAD];

    if (threadIdx.x == 0) grid_dependency_launch();  // the next kernel's blocks may come as soon as there is room
    const int lane = lane_id(), warp = __shfl_sync(FULL_WARP, warp_id(), 0), g = lane / 4, t = lane % 4, team = blockIdx.y, teams = gridDim.y;
    const int rank = blockIdx.x, first = units * rank / SPLITS + warp * UNITS, end = units * (rank + 1) / SPLITS;
    const int all = (n + ROWS - 1) / ROWS, steps = (all - team + teams - 1) / teams;
    unsigned char* const slots = shared + warp * (AHEAD * Part::W_BYTES);
    unsigned char* const scale_slots = shared + WARPS * AHEAD * Part::W_BYTES + warp * (AHEAD * Part::SCALE_PLACE);
    unsigned char* const behind = shared + WARPS * AHEAD * (Part::W_BYTES + Part::SCALE_PLACE);
    float4* const of_warps = reinterpret_cast<float4*>(behind + (HAS_TABLE ? 32768 : 0));
    float4* const of_block = of_warps + BATCH * WARPS * PLACES;
    Mbarrier* const full = barriers[warp];

    int coming = first < end ? 0 : steps;  // a warp may be left without a share
    const auto fetch = [&](int slot) {     // one lane
        if (coming >= steps) return;
        const int row = (team + coming * teams) * ROWS;
        mbarrier_arrive_expect_tx(&full[slot], Part::W_BYTES + Part::SCALE_BYTES);
#pragma unroll
        for (int unit = 0; unit < UNITS; ++unit)
            tma_load_once(slots + slot * Part::W_BYTES + unit * Part::UNIT_BYTES, w, &full[slot], (first + unit) * (Part::FOUR_BIT ? 32 : 128), row);
        if (Format::GROUPED)
            tma_load_once(scale_slots + slot * Part::SCALE_PLACE, scales, &full[slot], row, first * Part::UNIT / (GROUP_SIZE > 0 ? GROUP_SIZE : 1));
        ++coming;
    };
    if (lane == 0) {
        for (int i = 0; i < AHEAD; ++i) mbarrier_init(&full[i], 1);
        fence_mbarrier_init();
        for (int i = 0; i < AHEAD; ++i) fetch(i);
    }
    __syncwarp();
    const typename Format::Table table = Format::prepare(behind, codebook);

    grid_dependency_wait();
    uint4 b[COLUMNS][PIECES];
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
        const int token = 8 * c + g, start = first * Part::UNIT;
        load_x<Format, PIECES>(b[c], x + token * x_stride + start, first < end && token < m ? min(k, end * Part::UNIT) - start : 0);
    }
    float2 own_sums[FEW_SUMS ? GROUPS : 1][COLUMNS];
    if (Format::ASYMMETRIC) {
        const unsigned one = pack_pair<T>(1.0f, 1.0f), ones[4] = {one, one, one, one};
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
            for (int group = 0; group < GROUPS; ++group) {
                float sum[4] = {};
#pragma unroll
                for (int i = 0; i < OF_GROUP; ++i) {
                    const uint4& own = b[c][group * OF_GROUP + i];
                    const unsigned low[2] = {own.x, own.y}, high[2] = {own.z, own.w};
                    mma_m16n8k16<T>(sum, ones, low, sum);
                    mma_m16n8k16<T>(sum, ones, high, sum);
                }
                if (FEW_SUMS) own_sums[FEW_SUMS ? group : 0][c] = make_float2(sum[0], sum[1]);
                else if (g == 0) sums_of_x[FEW_SUMS ? 0 : warp][group][c][t] = make_float2(sum[0], sum[1]);
            }
        if (!FEW_SUMS) __syncwarp();
    }

    // A team's sums of four elements of y, place `i` of those of its steps: rows g and g + 8 of a tile, columns 2 t and 2 t + 1 of eight.
    const auto store = [&](int i, float4 sum) {
        const int row = (team + i / PLACES * teams) * ROWS + i / (COLUMNS * 32) % TILES * 16 + i % 32 / 4, token = i / 32 % COLUMNS * 8 + i % 4 * 2;
        const float each[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int at = row + e / 2 * 8, of = token + e % 2;
            if (at < n && of < m) y[of * static_cast<long long>(n) + at] = from_float<T>(Format::GROUPED ? each[e] : each[e] * row_scales[at]);
        }
    };
    const auto add = [](float4& sum, const float4& other) { sum.x += other.x, sum.y += other.y, sum.z += other.z, sum.w += other.w; };
    float4* const in_memory = workspace + (static_cast<long long>(team) * SPLITS + rank) * ((all + teams - 1) / teams * PLACES);
    // What the warps have of `count` steps, before step `done`, is added up in order.
    const auto settle = [&](int count, int done) {
        __syncthreads();
        for (int i = threadIdx.x; i < count * PLACES; i += 32 * WARPS) {
            const float4* const from = of_warps + i / PLACES * (WARPS * PLACES) + i % PLACES;
            float4 sum = from[0];
#pragma unroll
            for (int other = 1; other < WARPS; ++other) add(sum, from[other * PLACES]);
            const int place = (done - count) * PLACES + i;
            if (SPLITS == 1) store(place, sum);
            else if (CLUSTERED) of_block[place] = sum;
            else in_memory[place] = sum;
        }
    };

    int slot = 0, parity = 0, kept = 0;
    for (int step = 0; step < steps; ++step) {
        float4* const own = of_warps + (kept * WARPS + warp) * PLACES + lane;
        if (first < end) {
            mbarrier_wait(&full[slot], parity);
            const unsigned char* const line = slots + slot * Part::W_BYTES + (lane % 16) * 128;  // whose address the lane hands in
            const unsigned char* const of_groups = scale_slots + slot * Part::SCALE_PLACE;
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                float total[COLUMNS][4], sum[COLUMNS][4], scale[2];
                unsigned words[4];  // rows g and g + 8 of one chunk of 16 bytes, then of the next
#pragma unroll
                for (int piece = 0; piece < PIECES; ++piece) {
                    const int group = piece / OF_GROUP;
                    if (piece % OF_GROUP == 0) {
#pragma unroll
                        for (int h = 0; h < 2; ++h) {
                            const int at = group * ROWS + tile * 16 + g + 8 * h;
                            unsigned word = 0;
                            if (Format::ASYMMETRIC) word = reinterpret_cast<const unsigned*>(of_groups)[at];
                            else if (Format::GROUPED) word = reinterpret_cast<const unsigned short*>(of_groups)[at];
                            scale[h] = __uint_as_float(word << 16);
                            const float off = -(__uint_as_float(word & 0xffff0000u) + Format::OFFSET);  // what decoded numbers are too large by
#pragma unroll
                            for (int c = 0; c < COLUMNS; ++c) {
                                float2 of_x = make_float2(0.0f, 0.0f);
                                if (Format::ASYMMETRIC)
                                    of_x = FEW_SUMS ? own_sums[FEW_SUMS ? group : 0][c] : sums_of_x[FEW_SUMS ? 0 : warp][group][c][t];
                                sum[c][2 * h] = Format::ASYMMETRIC ? off * of_x.x : 0.0f;
                                sum[c][2 * h + 1] = Format::ASYMMETRIC ? off * of_x.y : 0.0f;
                            }
                        }
                    }
                    if (!Part::FOUR_BIT || piece % 2 == 0) {
                        const int chunk = Part::FOUR_BIT ? piece : 2 * piece;
                        ldmatrix(words, line + chunk / 8 * Part::UNIT_BYTES + tile * 2048 + ((chunk % 8 + lane / 16 ^ lane & 7) << 4));
                    }
                    unsigned a[2][4];
#pragma unroll
                    for (int h = 0; h < 2; ++h)
                        Format::decode(Part::FOUR_BIT ? make_uint4(words[piece % 2 * 2 + h], 0, 0, 0) : make_uint4(words[h], words[2 + h], 0, 0), 0, table,
                                       a[h]);
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const unsigned fragment[4] = {a[0][2 * half], a[1][2 * half], a[0][2 * half + 1], a[1][2 * half + 1]};
#pragma unroll
                        for (int c = 0; c < COLUMNS; ++c) {
                            const unsigned column[2] = {half ? b[c][piece].z : b[c][piece].x, half ? b[c][piece].w : b[c][piece].y};
                            mma_m16n8k16<T>(sum[c], fragment, column, sum[c]);
                        }
                    }
                    if (piece % OF_GROUP == OF_GROUP - 1) {
#pragma unroll
                        for (int i = 0; i < COLUMNS * 4; ++i) {
                            float& to = total[i / 4][i % 4];
                            const float value = sum[i / 4][i % 4];
                            to = !Format::GROUPED ? value : group == 0 ? scale[i / 2 % 2] * value : to + scale[i / 2 % 2] * value;
                        }
                    }
                }
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c) own[(tile * COLUMNS + c) * 32] = make_float4(total[c][0], total[c][1], total[c][2], total[c][3]);
            }
            __syncwarp();  // all have read
            if (lane == 0) fetch(slot);
            slot = slot + 1 == AHEAD ? 0 : slot + 1;
            parity ^= slot == 0;
        } else {
#pragma unroll
            for (int i = 0; i < TILES * COLUMNS; ++i) own[i * 32] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
        if (++kept == BATCH || step == steps - 1) {
            settle(kept, step + 1);
            kept = 0;
            if (step < steps - 1) __syncthreads();
        }
    }
    if constexpr (SPLITS > 1) {
        const int count = steps * PLACES;
        float4 parts[SPLITS];
        if constexpr (CLUSTERED) {
            cluster_sync();
            for (int i = rank * 32 * WARPS + threadIdx.x; i < count; i += SPLITS * 32 * WARPS) {
#pragma unroll
                for (int s = 0; s < SPLITS; ++s) parts[s] = *map_shared_rank(of_block + i, s);
#pragma unroll
                for (int s = 1; s < SPLITS; ++s) add(parts[0], parts[s]);
                store(i, parts[0]);
            }
            cluster_arrive_relaxed();  // the others may still be reading here
            cluster_wait();
        } else {
            __shared__ int arrived_before;
            __threadfence();
            __syncthreads();
            if (threadIdx.x == 0) arrived_before = atomicAdd(&counters[team], 1);
            __syncthreads();
            if (arrived_before < SPLITS - 1) return;
            if (threadIdx.x == 0) counters[team] = 0;
            __threadfence();
            const float4* const theirs = in_memory - rank * ((all + teams - 1) / teams * PLACES);
            for (int i = threadIdx.x; i < count; i += 32 * WARPS) {
#pragma unroll
                for (int s = 0; s < SPLITS; ++s) parts[s] = __ldcg(theirs + s * ((all + teams - 1) / teams * PLACES) + i);
#pragma unroll
                for (int s = 1; s < SPLITS; ++s) add(parts[0], parts[s]);
                store(i, parts[0]);
            }
        }
    }
}
