// Decode attention of v5 (kvcache/v5_cluster.cu) that begins before the projection to queries has ended.
//   Idea      All keys and values but the newest were written tokens ago. A warp asks for its first 16 tokens at once, and waits for the kernel
//             before only where it needs the queries, or the newest token.
//   Predicts  The way of the keys from memory, 1 us of 4, falls under the end of the projection.
//   Measured  Not alone: data/measured/h200/engine.csv has whole steps, 0.68 ms of 82 launches, with it (`early`).
//   Wastes    One sequence with 8 heads keeps 64 of 132 multiprocessors busy; the next kernel's weights come meanwhile.
#include "../../../kvcache/cluster_merge.cuh"
#include "fence.cuh"

// Launch as v5's decode_cluster.
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
    const int length = lengths[sequence.batch];  // written by begin.cu, which has ended: qkv.cu lets nobody begin before
    Keys<C, HEAD_DIM> keys;
    Values<C, HEAD_DIM> values;
    Warp<T, C, Tiling> warp;
    const bool old = token + CHUNK < length;  // without the newest token
    if (old) {
        const Place place(sequence, token);
        keys.load(k, k_scale, v_scale, sequence, place, CHUNK, problem);
        values.load(v, sequence, place, CHUNK, problem);
    }
    grid_dependency_launch();
    grid_dependency_wait();
    if (!old && token < length) {
        const Place place(sequence, token);
        keys.load(k, k_scale, v_scale, sequence, place, length - token, problem);
        values.load(v, sequence, place, length - token, problem);
    }
    warp.begin(q, sequence, first_row, length, problem);
    if (token < length) warp.walk(keys, values, k, v, k_scale, v_scale, sequence, length, token, stride, length, problem);
    meeting.put(warp, rows);
    __syncthreads();
    settle_cluster(meeting, slices, rows, out + problem.out_row(sequence.batch, sequence.head, first_row) * HEAD_DIM);
}
