// The head of a greedy decode step: norm and logits as gemv computes them, of which only the largest is kept, a candidate a block and row of x.
//   Idea      Who takes the likeliest token needs no logits. Each thread of the epilogue keeps the largest that it has put together, 8 lanes agree, and the
//             next step's first kernel takes the best of all blocks: a launch less, and no row of 128256 numbers written and read again.
//   Predicts  Drawing falls from three launches and 20 us to nothing: 6% of a token of Llama-3.2-1B at int4.
//   Measured  123 us in 16 bits and 71 in int8, in a profile of a step of Llama-3.2-1B; whole steps are in data/measured/h200/engine.csv.
//   Wastes    Nothing to speak of.
#include "../../../gemv/stream.cuh"
#include "../../../quant/gemv_formats.cuh"
#include "best.cuh"

template <class Element>
struct Likeliest {
    int outputs;
    mutable Best best;
    struct Held {};

    __device__ int row(int tile, int h, int r) const { return 16 * tile + 8 * h + r; }
    __device__ Held hold(int, int, int) const { return {}; }
    __device__ void put(Held, int, int tile, int r, float a, float b) const {
        if (16 * tile + r < outputs) best = better(best, best_of_logit(a, 16 * tile + r));
        if (16 * tile + 8 + r < outputs) best = better(best, best_of_logit(b, 16 * tile + 8 + r));
    }
};

// As gemv_quantised; bests (m, gridDim.x). m at most 4 * SHARE, so that a thread has one row of x alone.
template <class Format, bool NORM, int TILES, int WARPS, int SHARE, int AHEAD, int BLOCKS>
__global__ void __launch_bounds__(32 * WARPS, BLOCKS)
    head_stream(const typename Format::T* x, const void* w, const void* scales, const float* codebook, const typename Format::T* norm_weight, Best* bests,
                Sizes sizes, int table_bytes) {
    extern __shared__ __align__(16) unsigned char shared[];
    const Likeliest<typename Format::T> epilogue{sizes.n, nothing_yet()};
    stream<Format, NORM, TILES, WARPS, SHARE, AHEAD>(epilogue, x, w, scales, codebook, norm_weight, sizes, shared, table_bytes);
    constexpr int GROUPS = WARPS / SHARE;
    __shared__ Best of_group[4 * SHARE][GROUPS];
    const Best best = best_of_lanes(epilogue.best, 8);
    const int item = threadIdx.x % (32 * SHARE), group = threadIdx.x / (32 * SHARE);
    if (item % 8 == 0) of_group[item / 8][group] = best;
    __syncthreads();
    if (threadIdx.x < static_cast<unsigned>(sizes.m) && blockIdx.y == 0) {
        Best of_block = of_group[threadIdx.x][0];
        for (int i = 1; i < GROUPS; ++i) of_block = better(of_block, of_group[threadIdx.x][i]);
        bests[threadIdx.x * gridDim.x + blockIdx.x] = of_block;
    }
}
