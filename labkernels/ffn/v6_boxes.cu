// FFN, v6, boxes: one kernel for both products of a few tokens (at most 16), as when a model writes one word after another (sm_90a).
//   Idea      For 16 tokens an FFN is two streams of weights, and all that counts is that they never stop. Each block owns a strip of rows
//             of W1, then one of W2; one thread asks the copy engine for them, six slots of 35 KB ahead, with the same columns of the
//             tokens beside them. A slot is one box of three axes, rows by 64s of columns by 64 columns, an odd number of 64s: so a row's
//             piece is read in one go, and eight rows of it lie in all banks. Tensor cores multiply: 8 rows of weights by 16 tokens (fewer
//             are as good) in an instruction.
//             Between the products all blocks must meet, because each row of W2 needs the whole of h. Two kernels would drain the
//             memory there: the last blocks of the first end, the next is launched, its first loads take a microsecond. Here the
//             slots are filled with W2 while h is not even there: only h itself, tokens x ffn, has to wait. And the same at the kernel's start:
//             launched early (programmatic dependent launch), it fills its slots with W1 while the kernel ends that makes x.
//   Predicts  3 * 4096 * 11008 * 2 bytes = 271 MB at 4350 GB/s, 62 us for SwiGLU. Filled slots are 24 MB, 5 us of the stream: longer than
//             the blocks take to meet.
//   Measured  data/measured/h200/ffn.csv: 68.6 us for one token and SwiGLU, 87% of the limit; 78.2 as two launches (`v6_two_kernels`), by
//             PyTorch's compiler 83.0. A box for each 64 columns was slower, and so were strips of 48 rows of W1 (two for some blocks, one for
//             others) or of 24.
//   Cannot    win for many tokens. There the weights are read once for 128 or 256 tokens anyway, h of a tile has to go through memory or
//             its product has to stay on chip: 128 tokens x 4096 of float32 sums are 2 MB, an SM has 256 KB of registers.
//   Wastes    15 of 16 rows of the tensor cores for one token, which cost nothing here. The tail: the last sums, 1 us.
//
// Strips of W1 are handed out by a counter, so that nobody waits for a block that has not begun to run: then the blocks need not all fit on the
// GPU at once, and no cooperative launch is needed.
#include "activation.cuh"
#include "fence.cuh"
#include "ldmatrix.cuh"
#include "mma.cuh"
#include "named_barrier.cuh"
#include "tma.cuh"

constexpr int BOX = 64, LINE = 2 * BOX;          // columns of a box, and its bytes in a row
constexpr int TEAMS = 2, SIDES = 4;              // a slot belongs to a team of four warps, each with a quarter of its rows
constexpr int CONSUMERS = TEAMS * SIDES * 32, THREADS = CONSUMERS + 32;

// A strip has HALVES times ROWS rows, of which a slot holds ROWS, BOXES times 64 columns of each, and the same columns of TOKENS tokens below them.
// With two halves the slots take turns, gates and ups: each team has one of them, and its sums are complete. With one half the teams take turns
// at the columns, and their sums are added.
template <int ROWS_, int BOXES_, int TOKENS_, int HALVES_>
struct Strip {
    static constexpr int ROWS = ROWS_, BOXES = BOXES_, TOKENS = TOKENS_, HALVES = HALVES_;
    static constexpr int BLOCKS = ROWS / 8, OF_SIDE = (BLOCKS + SIDES - 1) / SIDES, PARTS = TEAMS / HALVES;
    static constexpr int TOKENS_AT = ROWS * BOXES * LINE, BOX_BYTES = TOKENS_AT + TOKENS * BOXES * LINE, BYTES = (BOX_BYTES + 1023) / 1024 * 1024;
    static constexpr int STRIDE = (HALVES * ROWS + 31) / 32 * 32 + 8;  // of sums in shared memory, so that no two lanes meet in a bank
    static_assert(ROWS % 8 == 0, "tensor cores take weights by 8 rows, and boxes begin on 1024 bytes");
    static_assert(BOXES % 2 == 1, "else rows that are neighbours begin in the same banks");

    __device__ static int slots(int boxes) { return (boxes + BOXES - 1) / BOXES * HALVES; }
    __device__ static int first_box(int slot) { return slot / HALVES * BOXES; }
    // Asks for rows from `row` on, and for as many columns as a slot holds, from `box` on. A map of one box a row counts columns, others boxes.
    __device__ static void load(char* to, const TensorMap& map, Mbarrier* arrived, int box, int row) {
        if (BOXES == 1) tma_load(to, map, arrived, box * BOX, 0, row);
        else tma_load(to, map, arrived, 0, box, row);
    }
};

// How far the blocks are. All zero before and after the launch.
struct Progress {
    unsigned claimed, done, left;  // tiles of W1 that a block has taken, that are finished; blocks that are through
};

// The slot's share of the product: sums += tokens by this warp's quarter of the rows. Line l, 128 bytes, has its pieces of 16 bytes turned by l % 8.
template <class T, class Strip>
__device__ __forceinline__ void multiply(float (&sums)[Strip::OF_SIDE][4], const char* slot, int boxes, int side) {
    const int lane = threadIdx.x % 32;
    const char* const tokens = slot + Strip::TOKENS_AT;
    for (int box = 0; box < boxes; ++box) {
        const int token = lane % 16 % Strip::TOKENS * Strip::BOXES + box, row = lane % 8 * Strip::BOXES + box;  // lines
#pragma unroll
        for (int half = 0; half < 2; ++half) {  // 32 columns
            unsigned a[2][4];
#pragma unroll
            for (int i = 0; i < 2; ++i) ldmatrix(a[i], tokens + token * LINE + ((4 * half + 2 * i + lane / 16) ^ token % 8) * 16);
#pragma unroll
            for (int j = 0; j < Strip::OF_SIDE; ++j) {
                const int block = side * Strip::OF_SIDE + j;
                if (Strip::BLOCKS % SIDES && block >= Strip::BLOCKS) continue;
                unsigned b[4];
                ldmatrix(b, slot + (8 * block * Strip::BOXES + row) * LINE + ((4 * half + lane / 8) ^ row % 8) * 16);
                const unsigned first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
                mma_m16n8k16<T>(sums[j], a[0], first, sums[j]);
                mma_m16n8k16<T>(sums[j], a[1], second, sums[j]);
            }
        }
    }
}

// The ring of slots. Slot i is always emptied by the same team, so that nobody waits for a phase of an mbarrier that may not be the next one: copies
// do not arrive in the order in which they were asked for.
template <int SLOTS>
struct Slots {
    static_assert(SLOTS % TEAMS == 0, "a slot belongs to a team");
    char* base;
    int bytes;
    Mbarrier *full, *empty;
    int next;  // how many slots have been filled (emptied) in the kernel's life

    __device__ char* slot(int at) const { return base + at % SLOTS * bytes; }
    __device__ void wait_empty(int at) const { mbarrier_wait(&empty[at % SLOTS], at / SLOTS & 1 ^ 1); }
    __device__ void wait_full(int at) const { mbarrier_wait(&full[at % SLOTS], at / SLOTS & 1); }
};

// A whole strip by all consumers: each team multiplies every second slot, then the sums meet in `room`; those of two teams are added up, that of
// the strip's first slot first: the same order each time. finish(token, row, sum, other) gets those of the first `results` rows; `other` is that
// of the second half.
template <class T, class Strip, int SLOTS, class Finish>
__device__ __forceinline__ void consume(Slots<SLOTS>& ring, float* room, int k, int tokens, int results, Finish finish) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, team = warp % TEAMS, side = warp / TEAMS;
    const int boxes = (k + BOX - 1) / BOX, slots = Strip::slots(boxes);
    float sums[Strip::OF_SIDE][4] = {};
    const int turn = (team + TEAMS - ring.next % TEAMS) % TEAMS;  // this team's first slot
    for (int slot = turn; slot < slots; slot += TEAMS) {
        const int at = ring.next + slot;
        ring.wait_full(at);
        multiply<T, Strip>(sums, ring.slot(at), min(Strip::BOXES, boxes - Strip::first_box(slot)), side);
        __syncwarp();
        if (lane == 0) mbarrier_arrive(&ring.empty[at % SLOTS]);
    }
    ring.next += slots;

    constexpr int STRIDE = Strip::STRIDE, PART = Strip::TOKENS * STRIDE;
    float* const own = room + (Strip::HALVES == 2 ? turn * Strip::ROWS : turn * PART);
#pragma unroll
    for (int j = 0; j < Strip::OF_SIDE; ++j) {
        const int row = 8 * (side * Strip::OF_SIDE + j) + lane % 4 * 2, token = lane / 4;
        if (Strip::BLOCKS % SIDES && row >= Strip::ROWS) continue;
        if (token < tokens) *reinterpret_cast<float2*>(own + token * STRIDE + row) = make_float2(sums[j][0], sums[j][1]);
        if (token + 8 < tokens) *reinterpret_cast<float2*>(own + (token + 8) * STRIDE + row) = make_float2(sums[j][2], sums[j][3]);
    }
    named_barrier_sync(1, CONSUMERS);
    for (int i = threadIdx.x; i < tokens * results; i += CONSUMERS) {
        const int token = i / results, row = i % results;
        const float* const column = room + token * STRIDE + row;
        float sum = 0.0f;
#pragma unroll
        for (int part = 0; part < Strip::PARTS; ++part) sum += column[part * PART];
        finish(token, row, sum, Strip::HALVES == 2 ? column[Strip::ROWS] : 0.0f);
    }
    __threadfence();  // what was written is for other blocks' copy engines to read
    fence_proxy_async();
    named_barrier_sync(1, CONSUMERS);  // the room may be written again
}

// y = act(x W1^T + b1) W2^T + b2 of x (tokens, embed), tokens <= TOKENS. w1 and w2 are tensor maps of W1, (ffn, embed), for boxes of UNITS rows
// (gated: (2 ffn, embed), all gates before all ups), and of W2 (embed, ffn) for boxes of ROWS rows; x and h_map those of the tokens and of h
// (tokens, ffn), which `h` points to, for TOKENS rows. All see their columns by 64, (rows, columns / 64, 64), and a box has BOXES_1 (BOXES_2) of
// these, swizzled over 128 bytes; or, with one, they are (rows, 1, columns), where columns need be no multiple of 64.
// Any number of blocks. `phases`: 3, or 1 for h alone and 2 for y alone, from an h that is there.
template <class T, int ACTIVATION, int TOKENS, int UNITS, int BOXES_1, int ROWS, int BOXES_2, int SLOTS>
__global__ void __launch_bounds__(THREADS, 1)
    ffn_boxes(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w1, const __grid_constant__ TensorMap h_map,
               const __grid_constant__ TensorMap w2, const T* b1, const T* b2, T* h, T* y, int tokens, int embed, int ffn, Progress* progress,
               int phases) {
    constexpr bool GATED = is_gated(ACTIVATION);
    using First = Strip<UNITS, BOXES_1, TOKENS, GATED ? 2 : 1>;
    using Second = Strip<ROWS, BOXES_2, TOKENS, 1>;
    constexpr int SLOT_BYTES = First::BYTES > Second::BYTES ? First::BYTES : Second::BYTES;
    extern __shared__ __align__(1024) char dynamic[];
    __shared__ Mbarrier full[SLOTS], empty[SLOTS];
    __shared__ int tile_of[SLOTS];
    float* const room = reinterpret_cast<float*>(dynamic + SLOTS * SLOT_BYTES);
    const int blocks = gridDim.x, block = blockIdx.x;
    const int tiles_1 = (ffn + UNITS - 1) / UNITS, tiles_2 = (embed + ROWS - 1) / ROWS;
    const int boxes_1 = (embed + BOX - 1) / BOX, boxes_2 = (ffn + BOX - 1) / BOX;
    const bool both = phases == 3;

    if (threadIdx.x == 0) {
        for (int i = 0; i < SLOTS; ++i) {
            mbarrier_init(&full[i], 1);
            mbarrier_init(&empty[i], SIDES);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    Slots<SLOTS> ring{dynamic, SLOT_BYTES, full, empty, 0};

    if (threadIdx.x >= CONSUMERS) {
        if (threadIdx.x > CONSUMERS) return;
        bool begun = false;  // has the kernel before ended?
        const auto wait_for_kernel_before = [&] {
            if (!begun) grid_dependency_wait();
            if (!begun) grid_dependency_launch();
            begun = true;
        };
        if (phases & 1) {
            const int slots = First::slots(boxes_1);
            int asked = 0;  // slots whose columns of x are on their way: the weights do not come from the kernel before, x may
            const auto ask_for_x = [&](int below) {
                wait_for_kernel_before();
                for (; asked < below; ++asked)
                    First::load(ring.slot(asked) + First::TOKENS_AT, x, &full[asked % SLOTS], First::first_box(asked % slots), 0);
            };
            for (int turn = 0;; ++turn) {
                const int tile = both ? static_cast<int>(atomicAdd(&progress->claimed, 1u)) : block + turn * blocks;
                if (tile >= tiles_1) {  // ends the phase; it comes as a slot without bytes
                    ask_for_x(ring.next);
                    const int at = ring.next++;
                    ring.wait_empty(at);
                    tile_of[at % SLOTS] = tile;
                    mbarrier_arrive_expect_tx(&full[at % SLOTS], 0);
                    break;
                }
                for (int slot = 0; slot < slots; ++slot) {
                    const int at = ring.next++, up = First::HALVES == 2 ? slot % 2 : 0;
                    ring.wait_empty(at);
                    tile_of[at % SLOTS] = tile;
                    mbarrier_arrive_expect_tx(&full[at % SLOTS], First::BOX_BYTES);
                    First::load(ring.slot(at), w1, &full[at % SLOTS], First::first_box(slot), up * ffn + tile * UNITS);
                    if (begun || at + 1 >= SLOTS) ask_for_x(at + 1);
                }
            }
        }
        if (phases & 2) {
            const int slots = Second::slots(boxes_2), own = block < tiles_2 ? (tiles_2 - block + blocks - 1) / blocks : 0;
            const int begin = ring.next, total = own * slots;
            bool h_is_there = false;
            for (int i = 0, asked = 0; i < total; ++i) {  // slots whose weights are on their way; `asked`: whose columns of h are, too
                const int at = begin + i;
                ring.wait_empty(at);
                mbarrier_arrive_expect_tx(&full[at % SLOTS], Second::BOX_BYTES);
                Second::load(ring.slot(at), w2, &full[at % SLOTS], Second::first_box(i % slots), (block + i / slots * blocks) * ROWS);
                if (!h_is_there && i + 1 < min(SLOTS - 1, total)) continue;
                wait_for_kernel_before();
                if (!h_is_there && both) ring.wait_empty(begin - 1 + SLOTS);  // the slot that told the end: this block has done its part
                if (!h_is_there && both)
                    while (atomicAdd(&progress->done, 0u) < static_cast<unsigned>(tiles_1)) __nanosleep(20);
                if (!h_is_there) {
                    __threadfence();
                    fence_proxy_async();
                    h_is_there = true;
                }
                for (; asked <= i; ++asked)
                    Second::load(ring.slot(begin + asked) + Second::TOKENS_AT, h_map, &full[(begin + asked) % SLOTS], Second::first_box(asked % slots), 0);
            }
        }
        wait_for_kernel_before();
        // The last one out leaves zeros: block 0, which always has a tile of W2, has seen the last one of W1 done.
        if (both && atomicAdd(&progress->left, 1u) == blocks - 1) {
            atomicExch(&progress->claimed, 0u);
            atomicExch(&progress->done, 0u);
            atomicExch(&progress->left, 0u);
        }
        return;
    }

    if (phases & 1) {
        for (;;) {
            ring.wait_full(ring.next);
            const int tile = tile_of[ring.next % SLOTS];
            named_barrier_sync(1, CONSUMERS);  // all have read it: only one team waits for this slot to be used up
            if (tile >= tiles_1) break;
            const int unit = tile * UNITS;
            const auto finish = [&](int token, int row, float sum, float other) {
                if (b1 != nullptr) {
                    sum += to_float(b1[unit + row]);
                    if (GATED) other += to_float(b1[ffn + unit + row]);
                }
                h[token * static_cast<long long>(ffn) + unit + row] = from_float<T>(ffn_activate<ACTIVATION, T>(sum, other));
            };
            consume<T, First>(ring, room, embed, tokens, min(UNITS, ffn - unit), finish);
            if (both && threadIdx.x == 0) {
                __threadfence();
                atomicAdd(&progress->done, 1u);
            }
        }
        if (threadIdx.x % 32 == 0 && threadIdx.x / 32 % TEAMS == 0) mbarrier_arrive(&empty[ring.next % SLOTS]);
        ++ring.next;
    }
    if (phases & 2) {
        for (int tile = block; tile < tiles_2; tile += blocks) {
            const auto finish = [&](int token, int row, float sum, float) {
                if (b2 != nullptr) sum += to_float(b2[tile * ROWS + row]);
                y[token * static_cast<long long>(embed) + tile * ROWS + row] = from_float<T>(sum);
            };
            consume<T, Second>(ring, room, ffn, tokens, min(ROWS, embed - tile * ROWS), finish);
        }
    }
}
