// Decode attention, v4: the group's queries as one operand of tensor cores; splits that fit the lengths; one launch.
//   Idea      A group's queries are up to 16 rows, what one mma.sync multiplies: one instruction for 8 keys and 16 elements of all of them, in
//             place of 4 FMA and 5 shuffles a score. Which element of a row has which place in a fragment is free, as long as both operands
//             agree: so each lane reads 16 bytes of a key, or of a value, straight into the registers that are multiplied. No shared memory,
//             no barrier between a load and its use; each warp has its own 16 tokens and its own softmax.
//             The second product is turned round, out^T = v^T weights^T: where a lane holds a weight after the first is where it is wanted.
//             Splits are cut on the GPU, which alone knows the lengths (splits.cuh), and the one that finishes a head last merges its parts, in
//             their order: the same bits each time, and no second launch.
//             Elements of 8 bits become halves on their way into a fragment, in 1 to 3 instructions a register (fragments.cuh); the tokens' scales go
//             to their scores and weights.
//   Predicts  Of the time that 16 tokens' 8 KB take to come to a multiprocessor (436 cycles), tensor cores need 25, other instructions 80: memory
//             is the limit if enough is asked for at a time. 8 to 12 warps with 8 KB each on their way are some 80 KB, 2 us of the bandwidth.
//   Measured  data/measured/h200/decode_attention.csv: one sequence of 8192 tokens 57.0 -> 15.4 us, 8 of them 377 -> 66.6, 32 of them 1128 ->
//             246.0, 94% of the limit (cuDNN 17.2, 69.3, 242.9). In pages of 64: 15.7, 67.6, 248.0 (FlashInfer 17.8, 71.0, 247.0); int8 154.
//             Splits that take turns, tile by tile, instead of a stretch each, so that all blocks of a head read in one region: 2% faster from 128 MB on.
//             Rings of tokens in shared memory, filled by cp.async or by TMA, with two and three times as many bytes on their way, were not
//             faster: what memory gives is taken already. A block that crossed from one head into the next was slower by as much as both waits.
//   Wastes    Of one sequence of 1000 tokens each multiprocessor reads 32 KB, in a quarter of a microsecond; the rest is waiting: for the launch,
//             for the length, for keys and values, for the parts of others.
#include "parts.cuh"

// One split of an item a block; blocks beyond the number of splits leave at once. Launch with at least a block for each item.
template <class T, class C, class Tiling>
__global__ void __launch_bounds__(Tiling::THREADS, Tiling::BLOCKS)
    decode_tensor_cores(const T* q, const C* k, const C* v, const float* k_scale, const float* v_scale, const int* lengths, const int* block_table, T* out,
                        float4* parts, float2* part_stats, unsigned* arrived, int resident, Problem problem) {
    constexpr int HEAD_DIM = Tiling::HEAD_DIM, ROWS = Tiling::ROWS;
    extern __shared__ float4 shared[];
    auto& meeting = *reinterpret_cast<Meeting<T, C, Tiling>*>(shared);
    const int row_blocks = (problem.rows() + ROWS - 1) / ROWS;
    const Splits splits(lengths, problem.batch, problem.kv_heads * row_blocks, Tiling::WARPS, resident);
    if (static_cast<int>(blockIdx.x) >= splits.count) return;

    const auto item = splits.find(blockIdx.x);
    const Sequence sequence(block_table, problem, item.batch, item.head / row_blocks);
    const int first_row = item.head % row_blocks * ROWS, rows = min(ROWS, problem.rows() - first_row);
    // Splits take turns, a tile for each of their warps at a time: all blocks of an item read in the same region of memory.
    const int token = CHUNK * (item.split * Tiling::WARPS + warp_id()), stride = CHUNK * Tiling::WARPS * item.splits;
    Warp<T, C, Tiling> warp;
    Keys<C, HEAD_DIM> keys;
    Values<C, HEAD_DIM> values;
    if (token < item.length) {
        const Place place(sequence, token);
        keys.load(k, k_scale, v_scale, sequence, place, min(CHUNK, item.length - token), problem);
        values.load(v, sequence, place, min(CHUNK, item.length - token), problem);
    }
    warp.begin(q, sequence, first_row, item.length, problem);
    if (token < item.length) warp.walk(keys, values, k, v, k_scale, v_scale, sequence, item.length, token, stride, item.length, problem);
    meeting.put(warp, rows);
    __syncthreads();
    settle(meeting, item, rows, out + problem.out_row(sequence.batch, sequence.head, first_row) * HEAD_DIM, Parts{parts, part_stats, arrived});
}
