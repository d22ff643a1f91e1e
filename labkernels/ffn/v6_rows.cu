// FFN, v6, rows: one kernel for both products of a few tokens (at most 16), as when a model writes one word after another (sm_90a).
//   Idea      For 16 tokens an FFN is two streams of weights, and all that counts is that they never stop. Each block owns a strip of rows
//             of W1, then one of W2; four warps ask for them by cp.async, several slots ahead, with the same columns of the tokens
//             beside them. Tensor cores multiply: 8 rows of weights by 16 tokens (fewer are as good) in an instruction.
//             Between the products all blocks must meet, because each row of W2 needs the whole of h. Two kernels would drain the
//             memory there: the last blocks of the first end, the next is launched, its first loads take a microsecond. Here the
//             slots are filled with W2 while h is not even there: only h itself, tokens x ffn, has to wait.
//   Predicts  3 * 4096 * 11008 * 2 bytes = 271 MB at 4350 GB/s, 62 us for SwiGLU. Filled slots are 15 MB, 3.5 us of the stream: longer than
//             the blocks take to meet.
//   Measured  data/measured/h200/ffn.csv: no win. One token of SwiGLU takes 111 us in bfloat16, PyTorch 87 and v6_boxes 69; in float32 211,
//             PyTorch 166. Slots filled row by row by the copy engine (cp.async.bulk) lost to its boxes too, and the more so the more copies
//             there were.
//   Cannot    win for many tokens. There the weights are read once for 128 or 256 tokens anyway, h of a tile has to go through memory or
//             its product has to stay on chip: 128 tokens x 4096 of float32 sums are 2 MB, an SM has 256 KB of registers.
//   float32   has no tensor cores; a weight is multiplied by 16 tokens in 16 FMAs, for which there is time while it comes.
//   Wastes    15 of 16 rows of the tensor cores for one token, which cost nothing here. The tail: the last sums, 1 us.
//
// Strips of W1 are handed out by a counter, so that nobody waits for a block that has not begun to run: then the blocks need not all fit on the
// GPU at once, and no cooperative launch is needed.
#include "activation.cuh"
#include "cp_async.cuh"
#include "ldmatrix.cuh"
#include "mbarrier.cuh"
#include "mma.cuh"
#include "named_barrier.cuh"
#include "vector.cuh"
#include "warp.cuh"

constexpr int TEAMS = 4, SIDES = 2;  // a slot belongs to a team of two warps, each with half of its rows
constexpr int CONSUMERS = TEAMS * SIDES * 32, PRODUCERS = 128, THREADS = CONSUMERS + PRODUCERS;

// How a strip of ROWS rows is cut into slots, COLUMNS columns wide. SHARED_OUT: it is cut into TEAMS groups of rows too, one for each team,
// and its slots take turns: those of the first columns, a group each, then those of the next. If not, a slot has all rows, and the teams
// take turns at the columns; their sums are to be added.
template <class T, int ROWS_, int COLUMNS_, int TOKENS_, bool SHARED_OUT_>
struct Strip {
    static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, TOKENS = TOKENS_;
    static constexpr bool SHARED_OUT = SHARED_OUT_;
    static constexpr int BLOCKS = ROWS / 8, OF_GROUP = SHARED_OUT ? (BLOCKS + TEAMS - 1) / TEAMS : BLOCKS, OF_SIDE = (OF_GROUP + SIDES - 1) / SIDES;
    static constexpr int GROUP_ROWS = 8 * OF_GROUP, GROUPS = (ROWS + GROUP_ROWS - 1) / GROUP_ROWS;
    static constexpr int PITCH = sizeof(T) * COLUMNS + 16;  // bytes from row to row: eight neighbours lie in all 32 banks
    static constexpr int TOKENS_AT = GROUP_ROWS * PITCH, BYTES = TOKENS_AT + TOKENS * PITCH;
    static constexpr int STRIDE = (ROWS + 31) / 32 * 32 + 8, PARTS = SHARED_OUT ? 1 : TEAMS;  // of sums in shared memory
    static_assert(ROWS % 8 == 0 && COLUMNS % 32 == 0, "tensor cores take weights by 8 rows, and 32 columns at a time");

    // A multiple of TEAMS; those at the end may have no columns.
    __device__ static int slots(int k) {
        const int pieces = (k + COLUMNS - 1) / COLUMNS;
        return (SHARED_OUT ? pieces : (pieces + TEAMS - 1) / TEAMS) * TEAMS;
    }
    __device__ static int columns(int slot, int k) { return max(0, min(COLUMNS, k - column(slot))); }
    __device__ static int column(int slot) { return (SHARED_OUT ? slot / TEAMS : slot) * COLUMNS; }
    __device__ static int first_row(int slot) { return SHARED_OUT ? slot % TEAMS * GROUP_ROWS : 0; }
    __device__ static int rows(int slot) { return max(0, min(GROUP_ROWS, ROWS - first_row(slot))); }

    // Starts this producer's share of the copies of `rows` rows, `columns` of each: row i from row_at(i), to `to` and the PITCHes that follow.
    template <int MOST, class RowAt>
    __device__ static __forceinline__ void copy(char* to, int rows, int columns, RowAt row_at) {
        constexpr int PIECE = 16 / sizeof(T), PIECES = COLUMNS / PIECE;  // elements; in a row
        const int thread = threadIdx.x - CONSUMERS;
#pragma unroll
        for (int i = 0; i < (MOST * PIECES + PRODUCERS - 1) / PRODUCERS; ++i) {
            const int row = (thread + i * PRODUCERS) / PIECES, piece = (thread + i * PRODUCERS) % PIECES;
            if (row < rows && piece * PIECE < columns) cp_async_l2(to + row * PITCH + 16 * piece, row_at(row) + piece * PIECE);
        }
    }
};

// How far the blocks are. All zero before and after the launch.
struct Progress {
    unsigned claimed, done, left;  // strips of W1 that a block has taken, that are finished; blocks that are through
};

// The ring of slots. A slot is always emptied by the same team, so that nobody waits for a phase of an mbarrier that may not be the next one.
template <int SLOTS>
struct Ring {
    static_assert(SLOTS % TEAMS == 0, "a slot belongs to a team");
    char* base;
    int bytes;
    Mbarrier *full, *empty;
    int next;  // how many slots have been filled (emptied) in the kernel's life; a strip begins at a multiple of TEAMS

    __device__ char* slot(int at) const { return base + at % SLOTS * bytes; }
    __device__ void wait_empty(int at) const { mbarrier_wait(&empty[at % SLOTS], at / SLOTS & 1 ^ 1); }
    __device__ void wait_full(int at) const { mbarrier_wait(&full[at % SLOTS], at / SLOTS & 1); }
};

// This warp's sums, of its half of a slot's rows: blocks of 8 rows from `first` on, below `blocks`. As mma.sync leaves them: lane 4 g + t has rows 2 t and
// 2 t + 1 of tokens g and g + 8.
template <class T, class Strip>
struct Sums {
    float of[Strip::OF_SIDE][4] = {};
    int first, blocks, tokens;

    // += tokens by rows, `columns` of them.
    __device__ __forceinline__ void multiply(const char* slot, int columns) {
        const int lane = threadIdx.x % 32;
        const char* const a_row = slot + Strip::TOKENS_AT + min(lane % 16, tokens - 1) * Strip::PITCH + lane / 16 * 16;
        const char* const b_row = slot + (8 * first + lane % 8) * Strip::PITCH + lane / 8 * 16;
#pragma unroll 4
        for (int at = 0; at < 2 * columns; at += 64) {
            unsigned a[2][4];
            ldmatrix(a[0], a_row + at);
            ldmatrix(a[1], a_row + at + 32);
#pragma unroll
            for (int j = 0; j < Strip::OF_SIDE; ++j) {
                if (first + j >= blocks) break;
                unsigned b[4];
                ldmatrix(b, b_row + 8 * j * Strip::PITCH + at);
                const unsigned left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
                mma_m16n8k16<T>(of[j], a[0], left, of[j]);
                mma_m16n8k16<T>(of[j], a[1], right, of[j]);
            }
        }
    }

    // To room[token * STRIDE + row], rows counted from the slot's first.
    __device__ __forceinline__ void store(float* room) const {
        const int lane = threadIdx.x % 32, token = lane / 4;
#pragma unroll
        for (int j = 0; j < Strip::OF_SIDE; ++j) {
            if (first + j >= blocks) break;
            float* const to = room + token * Strip::STRIDE + 8 * (first + j) + lane % 4 * 2;
            if (token < tokens) *reinterpret_cast<float2*>(to) = make_float2(of[j][0], of[j][1]);
            if (token + 8 < tokens) *reinterpret_cast<float2*>(to + 8 * Strip::STRIDE) = make_float2(of[j][2], of[j][3]);
        }
    }
};

// The same in float32, for which there are no tensor cores: lane 8 q + r has row r of each block, and the q-th 4 of each 16 columns.
template <class Strip>
struct Sums<float, Strip> {
    float of[Strip::OF_SIDE][Strip::TOKENS] = {};
    int first, blocks, tokens;

    __device__ __forceinline__ void multiply(const char* slot, int columns) {
        const int lane = threadIdx.x % 32;
        const char* const x_row = slot + Strip::TOKENS_AT + lane / 8 * 16;
        const char* const w_row = slot + (8 * first + lane % 8) * Strip::PITCH + lane / 8 * 16;
        for (int at = 0; at < 4 * columns; at += 64) {
            float w[Strip::OF_SIDE][4] = {};
#pragma unroll
            for (int j = 0; j < Strip::OF_SIDE; ++j)
                if (first + j < blocks) load_vector(reinterpret_cast<const float*>(w_row + 8 * j * Strip::PITCH + at), w[j]);
#pragma unroll
            for (int token = 0; token < Strip::TOKENS; ++token) {
                float x[4];
                load_vector(reinterpret_cast<const float*>(x_row + min(token, tokens - 1) * Strip::PITCH + at), x);
#pragma unroll
                for (int i = 0; i < 4; ++i)
#pragma unroll
                    for (int j = 0; j < Strip::OF_SIDE; ++j) of[j][token] += w[j][i] * x[i];
            }
        }
    }

    __device__ __forceinline__ void store(float* room) const {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int j = 0; j < Strip::OF_SIDE; ++j) {
#pragma unroll
            for (int token = 0; token < Strip::TOKENS; ++token) {
                float sum = of[j][token];
                sum += __shfl_xor_sync(FULL_WARP, sum, 8);
                sum += __shfl_xor_sync(FULL_WARP, sum, 16);
                if (first + j < blocks && token < tokens && lane / 8 == token % 4) room[token * Strip::STRIDE + 8 * (first + j) + lane % 8] = sum;
            }
        }
    }
};

// A whole strip by all consumers, from tokens of k columns. The sums go to `room`, and finish(token, row, sum, other) gets those of the first `results`
// rows; if PAIRS, `other` is that of the row half a strip on. Teams are added in the same order each time.
template <class T, class Strip, bool PAIRS, int SLOTS, class Finish>
__device__ __forceinline__ void consume(Ring<SLOTS>& ring, float* room, int k, int tokens, int results, Finish finish) {
    const int warp = threadIdx.x / 32, team = warp % TEAMS, side = warp / TEAMS, slots = Strip::slots(k);
    Sums<T, Strip> sums;
    sums.first = side * Strip::OF_SIDE, sums.blocks = Strip::rows(team) / 8, sums.tokens = tokens;
    for (int slot = team; slot < slots; slot += TEAMS) {
        const int at = ring.next + slot;
        ring.wait_full(at);
        sums.multiply(ring.slot(at), Strip::columns(slot, k));
        mbarrier_arrive(&ring.empty[at % SLOTS]);
    }
    ring.next += slots;

    constexpr int STRIDE = Strip::STRIDE, PART = Strip::TOKENS * STRIDE;
    sums.store(room + (Strip::SHARED_OUT ? Strip::first_row(team) : team * PART));
    named_barrier_sync(1, CONSUMERS);
    for (int i = threadIdx.x; i < tokens * results; i += CONSUMERS) {
        const int token = i / results, row = i % results;
        const float* const column = room + token * STRIDE + row;
        float sum = 0.0f, other = 0.0f;
#pragma unroll
        for (int part = 0; part < Strip::PARTS; ++part) {
            sum += column[part * PART];
            if (PAIRS) other += column[part * PART + Strip::ROWS / 2];
        }
        finish(token, row, sum, other);
    }
    __threadfence();  // what was written is for other blocks to read
    named_barrier_sync(1, CONSUMERS);  // the room may be written again
}

// y = act(x W1^T + b1) W2^T + b2 of x (tokens, embed), tokens <= TOKENS <= 16, W1 (ffn, embed), gated (2 ffn, embed), all gates before all ups, and
// W2 (embed, ffn). h (tokens, ffn) is written and read. All rows lie on 16 bytes; embed and ffn are multiples of 32.
// Any number of blocks. `phases`: 3, or 1 for h alone and 2 for y alone, from an h that is there.
// Strips have UNITS units of h (as many gates and ups), and ROWS rows of W2.
template <class T, int ACTIVATION, int TOKENS, int UNITS, int COLUMNS_1, int ROWS, int COLUMNS_2, int SLOTS>
__global__ void __launch_bounds__(THREADS, 1)
    ffn_rows(const T* x, const T* w1, const T* w2, const T* b1, const T* b2, T* h, T* y, int tokens, int embed, int ffn, long long x_stride,
               long long w1_stride, long long w2_stride, Progress* progress, int phases) {
    constexpr bool GATED = is_gated(ACTIVATION);
    using First = Strip<T, UNITS*(GATED ? 2 : 1), COLUMNS_1, TOKENS, true>;
    using Second = Strip<T, ROWS, COLUMNS_2, TOKENS, false>;
    constexpr int SLOT_BYTES = First::BYTES > Second::BYTES ? First::BYTES : Second::BYTES;
    extern __shared__ __align__(16) char dynamic[];
    __shared__ Mbarrier full[SLOTS], empty[SLOTS];
    __shared__ Mbarrier told[2], heard[2];  // which strip comes next, told a strip ahead
    __shared__ int strips[2];
    float* const room = reinterpret_cast<float*>(dynamic + SLOTS * SLOT_BYTES);
    const int blocks = gridDim.x, block = blockIdx.x;
    const int strips_1 = (ffn + UNITS - 1) / UNITS, strips_2 = (embed + ROWS - 1) / ROWS;
    const bool both = phases == 3;

    if (threadIdx.x == 0) {
        for (int i = 0; i < SLOTS; ++i) {
            mbarrier_init(&full[i], PRODUCERS);
            mbarrier_init(&empty[i], SIDES * 32);
        }
        for (int i = 0; i < 2; ++i) {
            mbarrier_init(&told[i], 1);
            mbarrier_init(&heard[i], CONSUMERS);
        }
    }
    __syncthreads();
    Ring<SLOTS> ring{dynamic, SLOT_BYTES, full, empty, 0};

    if (threadIdx.x >= CONSUMERS) {
        const bool first = threadIdx.x == CONSUMERS;
        // Copies arrive in the order in which they were asked for: with each slot that is asked for, the one LAG before it is full.
        constexpr int LAG = SLOTS > 10 ? 8 : SLOTS - 2;  // at most two strips of TEAMS slots: those of the one before the last must be told
        int begin = 0, filled = 0;  // slots that have been told full are those below `filled`
        const auto tell = [&](int below) {
            if (filled >= below) return;
            for (; filled < below; ++filled) mbarrier_arrive(&full[filled % SLOTS]);
        };
        int turn = 0;
        if (phases & 1) {
            for (;; ++turn) {
                mbarrier_wait(&heard[turn % 2], turn / 2 & 1 ^ 1);
                if (first) {
                    strips[turn % 2] = both ? static_cast<int>(atomicAdd(&progress->claimed, 1u)) : block + turn * blocks;
                    mbarrier_arrive(&told[turn % 2]);
                }
                mbarrier_wait(&told[turn % 2], turn / 2 & 1);
                const int strip = strips[turn % 2];
                named_barrier_sync(2, PRODUCERS);  // none of them is a strip behind, and misses a phase
                if (strip >= strips_1) break;      // it tells of the end
                for (int slot = 0; slot < First::slots(embed); ++slot) {
                    const int at = ring.next++, column = First::column(slot), row = First::first_row(slot), columns = First::columns(slot, embed);
                    ring.wait_empty(at);
                    First::template copy<First::GROUP_ROWS>(ring.slot(at), First::rows(slot), columns, [&](int i) {
                        const int in_strip = row + i, unit = min(strip * UNITS + in_strip % UNITS, ffn - 1);
                        return w1 + (GATED && in_strip >= UNITS ? ffn + unit : unit) * w1_stride + column;
                    });
                    First::template copy<TOKENS>(ring.slot(at) + First::TOKENS_AT, tokens, columns, [&](int i) { return x + i * x_stride + column; });
                    cp_async_commit();
                    cp_async_wait<LAG>();
                    tell(at + 1 - LAG);
                }
            }
        }
        begin = ring.next;
        if (phases & 2) {
            const int slots = Second::slots(ffn), total = block < strips_2 ? (strips_2 - block + blocks - 1) / blocks * slots : 0;
            const auto copy_weights = [&](int i) {
                const int slot = i % slots, column = Second::column(slot), strip = block + i / slots * blocks;
                ring.wait_empty(begin + i);
                Second::template copy<ROWS>(ring.slot(begin + i), ROWS, Second::columns(slot, ffn),
                                            [&](int row) { return w2 + min(strip * ROWS + row, embed - 1) * w2_stride + column; });
            };
            const auto copy_h = [&](int i) {
                const int column = Second::column(i % slots);
                Second::template copy<TOKENS>(ring.slot(begin + i) + Second::TOKENS_AT, tokens, Second::columns(i % slots, ffn),
                                              [&](int token) { return h + token * static_cast<long long>(ffn) + column; });
            };
            // Weights fill the ring before h is there.
            const int ahead = min(SLOTS, total);
            for (int i = 0; i < ahead; ++i) {
                copy_weights(i);
                cp_async_commit();
                cp_async_wait<LAG>();
                tell(min(begin, begin + i + 1 - LAG));
            }
            cp_async_wait_all();
            tell(begin);
            if (both) {
                mbarrier_wait(&heard[turn % 2], turn / 2 & 1);  // all have heard of the end: this block's part of h is done
                if (first && ahead > 0) {
                    while (atomicAdd(&progress->done, 0u) < static_cast<unsigned>(strips_1)) __nanosleep(20);
                    __threadfence();
                }
                named_barrier_sync(2, PRODUCERS);
            }
            for (int i = 0; i < ahead; ++i) copy_h(i);
            cp_async_wait_all();
            tell(begin + ahead);
            for (int i = ahead; i < total; ++i) {
                copy_weights(i);
                copy_h(i);
                cp_async_commit();
                cp_async_wait<LAG>();
                tell(begin + i + 1 - LAG);
            }
            begin += total;
        }
        cp_async_wait_all();
        tell(begin);
        // The last one out leaves zeros: block 0, which always has a strip of W2, has seen the last one of W1 done.
        if (both && first && atomicAdd(&progress->left, 1u) == blocks - 1) {
            atomicExch(&progress->claimed, 0u);
            atomicExch(&progress->done, 0u);
            atomicExch(&progress->left, 0u);
        }
        return;
    }

    if (phases & 1) {
        for (int turn = 0;; ++turn) {
            mbarrier_wait(&told[turn % 2], turn / 2 & 1);
            const int strip = strips[turn % 2], unit = strip * UNITS;
            mbarrier_arrive(&heard[turn % 2]);
            if (strip >= strips_1) break;
            const auto finish = [&](int token, int row, float sum, float other) {
                if (b1 != nullptr) {
                    sum += to_float(b1[unit + row]);
                    if (GATED) other += to_float(b1[ffn + unit + row]);
                }
                h[token * static_cast<long long>(ffn) + unit + row] = from_float<T>(ffn_activate<ACTIVATION, T>(sum, other));
            };
            consume<T, First, GATED>(ring, room, embed, tokens, min(UNITS, ffn - unit), finish);
            if (both && threadIdx.x == 0) {
                __threadfence();
                atomicAdd(&progress->done, 1u);
            }
        }
    }
    if (phases & 2) {
        for (int strip = block; strip < strips_2; strip += blocks) {
            const auto finish = [&](int token, int row, float sum, float) {
                if (b2 != nullptr) sum += to_float(b2[strip * ROWS + row]);
                y[token * static_cast<long long>(embed) + strip * ROWS + row] = from_float<T>(sum);
            };
            consume<T, Second, false>(ring, room, ffn, tokens, min(ROWS, embed - strip * ROWS), finish);
        }
    }
}
