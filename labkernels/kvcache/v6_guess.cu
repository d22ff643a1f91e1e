// Decode attention, v6: begins as if all sequences were of one length. v4's splits with v5's start.
//   Idea      v4 waits for the lengths before it knows which block has what; v5 does not, but gives every head the same share of the GPU, however long
//             its sequence is. Here each block takes its share of a head by the room in the cache, asks for its first keys and values, and only then
//             reads the lengths. If they are about equal the guess was right, and what is on its way is used; else the splits are v4's.
//             A block is a whole multiprocessor of warps: fewer, larger shares than two blocks have, which come out even where lengths differ.
//   Predicts  v4 without some 2 us: a wait for the lengths, divisions, and a scan over the sequences.
//   Measured  data/measured/h200/decode_attention.csv: one sequence of 8192 tokens 15.4 -> 14.4 us, 8 of them 66.6 -> 66.1, 32 of them 246.0 ->
//             243.8; 32 x 32768 962 -> 953, 97% of the limit. cuDNN: 17.2, 69.3, and ahead with 32 sequences, 242.9 and 947. In pages of 64 32 x
//             32768 976 -> 962 (FlashInfer 965); 32 x 8192 in int8 154 -> 137, in fp8 153 -> 136. 32 x 1024 is slower than in v4: 35.9 -> 36.9.
//             Tried while this was written, and slower, at 32 x 8192 if not said otherwise: loads that tell L2 to fetch 256 bytes at a time, or
//             to bypass L1: up to 10%; two chunks of a warp on their way in place of one: 3 to 8%; chunks that L2 is asked for ahead of the
//             loads: 14%; clusters of 4 and 8 blocks that fill the GPU, 8 x 8192: 40% (not all find room at the same time). A ring in shared
//             memory that a producer warp fills by bulk copies, in blocks that stay and share out all tokens: 3% (8-bit caches: 3 to 17%), but
//             2% faster where lengths differ. Such copies alone, of which nobody reads anything: 4.70 TB/s.
//   Wastes    Parts of a head still go through memory; where lengths differ, the first loads were for nothing.
#include "parts.cuh"

constexpr int EVEN_SHARE = 8;  // lengths are about equal if all together have at least 7 / 8 of what the longest one would make them

// What all lanes have alike, in a register that all share: the addresses of the loop are then computed once a warp, and of 8-bit caches less spills.
__device__ __forceinline__ int uniform(int value) { return __reduce_max_sync(FULL_WARP, value); }

// As v4. Block b begins with split b % guessed of item b / guessed, if there is such an item.
template <class T, class C, class Tiling>
__global__ void __launch_bounds__(Tiling::THREADS, Tiling::BLOCKS)
    decode_guess(const T* q, const C* k, const C* v, const float* k_scale, const float* v_scale, const int* lengths, const int* block_table, T* out,
                 float4* parts, float2* part_stats, unsigned* arrived, int resident, int guessed, int capacity, int pages, Problem problem) {
    constexpr int HEAD_DIM = Tiling::HEAD_DIM, ROWS = Tiling::ROWS;
    extern __shared__ float4 shared[];
    auto& meeting = *reinterpret_cast<Meeting<T, C, Tiling>*>(shared);
    const int row_blocks = (problem.rows() + ROWS - 1) / ROWS, heads = problem.kv_heads * row_blocks;

    Warp<T, C, Tiling> warp;
    Keys<C, HEAD_DIM> keys;
    Values<C, HEAD_DIM> values;
    const int number = blockIdx.x / guessed;
    Splits::Item item{number / heads, number % heads, 0, static_cast<int>(blockIdx.x) % guessed, guessed};
    const bool there = item.batch < problem.batch;
    const auto first_token = [&] { return CHUNK * (item.split * Tiling::WARPS + warp_id()); };
    const auto sequence_of = [&] { return Sequence(block_table, problem, item.batch, item.head / row_blocks); };
    const auto load = [&](int room) {
        Place place(sequence_of(), first_token());
        if (place.page < 0 || place.page >= pages) place.page = 0;  // beyond the sequence's length the block table may say anything
        const int valid = min(CHUNK, room - first_token());
        keys.load(k, k_scale, v_scale, sequence_of(), place, valid, problem);
        values.load(v, sequence_of(), place, valid, problem);
    };
    const bool asked = there && first_token() < capacity;
    if (asked) load(capacity);

    int longest = 0, sum = 0;
    for (int b = lane_id(); b < problem.batch; b += 32) {
        const int tiles = Splits::tiles(lengths[b]);
        longest = max(longest, tiles);
        sum += tiles;
    }
    longest = __reduce_max_sync(FULL_WARP, longest);
    sum = __reduce_add_sync(FULL_WARP, sum);
    const bool even = static_cast<long long>(longest) * problem.batch * (EVEN_SHARE - 1) <= static_cast<long long>(sum) * EVEN_SHARE;
    if (even) {
        if (!there) return;
        item.length = lengths[item.batch];
        if (first_token() < item.length && first_token() + CHUNK > item.length) {
            keys.forget(item.length - first_token());
            values.forget(item.length - first_token());
        }
    } else {
        const Splits splits(lengths, problem.batch, heads, Tiling::WARPS, resident);
        if (static_cast<int>(blockIdx.x) >= splits.count) return;
        item = splits.find(blockIdx.x);
        if (first_token() < item.length) load(item.length);
    }

    item = {uniform(item.batch), uniform(item.head), uniform(item.length), uniform(item.split), uniform(item.splits)};
    const Sequence sequence = sequence_of();
    const int first_row = item.head % row_blocks * ROWS, rows = min(ROWS, problem.rows() - first_row);
    const int token = first_token(), stride = CHUNK * Tiling::WARPS * item.splits;
    warp.begin(q, sequence, first_row, item.length, problem);
    if (token < item.length) warp.walk(keys, values, k, v, k_scale, v_scale, sequence, item.length, token, stride, item.length, problem);
    meeting.put(warp, rows);
    __syncthreads();
    settle(meeting, item, rows, out + problem.out_row(sequence.batch, sequence.head, first_row) * HEAD_DIM, Parts{parts, part_stats, arrived});
}
