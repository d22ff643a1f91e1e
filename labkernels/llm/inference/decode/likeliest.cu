// The largest of each row of logits, for the sequences that head.cu does not serve: candidates, of which the next step's first kernel takes the best.
//   Idea      Greedy decoding needs of 128256 logits one number. They come from cuBLAS or quant_matmul, 16 bits each, and are still in L2: one pass over
//             them there, instead of a copy to float32, which goes through memory, and a kernel that could draw by any settings.
//   Predicts  64 rows are 16 MB: 5 us from L2, for 45 of the copy and sample_tokens.
//   Measured  11 us, in a profile of a step of 64 sequences; whole steps are in data/measured/h200/engine.csv.
//   Wastes    The logits' way to L2 and back; the product's epilogue could keep the largest itself.
#include "best.cuh"
#include "convert.cuh"
#include "fence.cuh"
#include "vector.cuh"

// logits (m, vocab), bests (m, candidates); candidate c is the largest of `each` logits, a multiple of WIDTH. Launch (candidates, m) blocks of 256.
template <class T, int WIDTH>
__global__ void __launch_bounds__(256) likeliest_logits(const T* logits, Best* bests, int vocab, int each) {
    const int first = blockIdx.x * each, last = min(first + each, vocab);
    const T* const row = logits + static_cast<long long>(blockIdx.y) * vocab;
    grid_dependency_wait();
    grid_dependency_launch();
    Best best = nothing_yet();
#pragma unroll 4
    for (int i = first + static_cast<int>(threadIdx.x) * WIDTH; i < last; i += 256 * WIDTH) {
        float values[WIDTH];
        load_vector(row + i, values);
#pragma unroll
        for (int e = 0; e < WIDTH; ++e) best = better(best, best_of_logit(values[e], i + e));
    }
    __shared__ Best of_warp[8];
    best = best_of_lanes(best, 32);
    if (lane_id() == 0) of_warp[warp_id()] = best;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int i = 1; i < 8; ++i) best = better(best, of_warp[i]);
    bests[blockIdx.y * gridDim.x + blockIdx.x] = best;
}
