// Decode attention, v5: a cluster for each head. For few tokens, where waiting is all that there is: nothing is waited for that need not be.
//   Idea      Up to 8 blocks that share a head are a cluster and merge through each other's shared memory: a barrier of the cluster in place of parts
//             in memory, a fence, a counter and reading it all back. Which tokens a warp takes does not depend on how many there are, so that the
//             first keys and values are asked for together with the length, not after it; what turns out to lie beyond is forgotten.
//   Predicts  Of v4's 7 us for 1000 tokens the way of the parts (fence, counter, reading: three times the latency of L2, 2 us) and the wait for the
//             length (another 0.7 us) fall away.
//   Measured  data/measured/h200/decode_attention.csv, sequences of 1024 tokens: one 8.3 -> 6.4 us, 8 15.2 -> 13.3, 32 35.9 -> 34.3 (cuDNN 9.1,
//             17.3, 36.6; FlashInfer, in pages of 64, 9.0, 18.0, 38.3, where this takes 6.5, 13.5, 34.7).
//   Wastes    The share of a block is fixed before lengths are known: where they differ, blocks of the short sequences are done early. And a cluster
//             has at most 8 blocks, so that one sequence with 8 heads keeps 64 of 132 multiprocessors busy; 16 would be no portable size, and do not
//             all find room: one sequence of 8192 tokens took 22 us when this was tuned, v4 takes 15. Caches of so many are v4's and v6's.
#include "cluster_merge.cuh"

// Launch with a grid of (cluster, kv_heads * row_blocks, batch), and that cluster: 1, 2, 4 or 8 blocks.
template <class T, class C, class Tiling>
__global__ void __launch_bounds__(Tiling::THREADS, Tiling::BLOCKS)
    decode_cluster(const T* q, const C* k, const C* v, const float* k_scale, const float* v_scale, const int* lengths, const int* block_table, T* out,
                   int capacity, int pages, Problem problem) {
    constexpr int HEAD_DIM = Tiling::HEAD_DIM, ROWS = Tiling::ROWS, QUADS = HEAD_DIM / 4;
    extern __shared__ float4 shared[];
    auto& meeting = *reinterpret_cast<Meeting<T, C, Tiling>*>(shared);
    auto& slices = *reinterpret_cast<Slices<ROWS * QUADS>*>(shared + sizeof(meeting) / sizeof(float4));
    const int blocks = gridDim.x, rank = blockIdx.x, row_blocks = (problem.rows() + ROWS - 1) / ROWS;
    const Sequence sequence(block_table, problem, blockIdx.z, blockIdx.y / row_blocks);
    const int first_row = blockIdx.y % row_blocks * ROWS, rows = min(ROWS, problem.rows() - first_row);
    if (blocks > 1) cluster_arrive();  // I have started: my shared memory is there

    const int token = CHUNK * (rank * Tiling::WARPS + warp_id()), stride = CHUNK * Tiling::WARPS * blocks;
    Keys<C, HEAD_DIM> keys;
    Values<C, HEAD_DIM> values;
    Warp<T, C, Tiling> warp;
    if (token < capacity) {
        Place place(sequence, token);
        if (place.page < 0 || place.page >= pages) place.page = 0;  // beyond the sequence's length the block table may say anything
        keys.load(k, k_scale, v_scale, sequence, place, min(CHUNK, capacity - token), problem);
        values.load(v, sequence, place, min(CHUNK, capacity - token), problem);
    }
    const int length = lengths[sequence.batch];
    warp.begin(q, sequence, first_row, length, problem);
    if (token < length) {
        if (token + CHUNK > length) keys.forget(length - token), values.forget(length - token);
        warp.walk(keys, values, k, v, k_scale, v_scale, sequence, length, token, stride, length, problem);
    }
    meeting.put(warp, rows);
    __syncthreads();
    settle_cluster(meeting, slices, rows, out + problem.out_row(sequence.batch, sequence.head, first_row) * HEAD_DIM);
}
