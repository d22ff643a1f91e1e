// Sampling, v2: a radix search. One block of 1024 threads a row; thresholds come from histograms in shared memory (select.cuh).
//   Idea      Count all thresholds at once: a pass over the row sorts its logits into 2048 bins by their upper 11 bits, three passes know the
//             k-th largest to the last bit. With masses in the bins in place of counts, the same three find the nucleus of top-p.
//   Predicts  At most ten passes over the row, whatever k and p are, and where v1 needs two for each token kept: 10x at k = 50.
//   Measured  data/measured/h200/sample_tokens.csv: 18.0 -> 0.369 ms for a row of float32 logits, top-k 50 and top-p 0.9, a sort of it 0.367; 64
//             rows 0.379, a sort of them 1.35.
//   Wastes    The row is read from L2 in each pass. One block of all multiprocessors; for 50 of 128256 tokens all fall into bins.
#include "row.cuh"
#include "select.cuh"

template <class T>
__global__ void __launch_bounds__(1024, 1) sample_radix(const T* logits, long long row_stride, int vocab, const long long* previous, int previous_count,
                                                    long long previous_stride, const bool* mask, long long mask_stride, Settings all,
                                                    const float* temperature, const int* top_k, const float* top_p, const float* min_p,
                                                    const float* penalty, const long long* seed, const long long* position, long long* tokens,
                                                    float* logprobs) {
    extern __shared__ unsigned before[];
    __shared__ Selection shared;
    const long long row_number = blockIdx.x;
    const Settings s = settings_of(row_number, all, temperature, top_k, top_p, min_p, penalty, seed, position);
    const Rule rule(s, vocab);
    if (previous_count) mark_previous(before, previous + row_number * previous_stride, previous_count, 0, vocab);
    const RowInMemory<T> row = {logits + row_number * row_stride, previous_count ? before : nullptr,
                                mask ? mask + row_number * mask_stride : nullptr, s.penalty};

    float maximum = -CUDART_INF_F;
    int without = 0;  // NaN or +inf, which have no distribution
    for (int token = threadIdx.x; token < vocab; token += blockDim.x) {
        const float value = row[token];
        without |= !(value < CUDART_INF_F);
        maximum = fmaxf(maximum, value);
    }
    without = __syncthreads_or(without);
    maximum = block_max(maximum);
    if (without || maximum == -CUDART_INF_F) {
        if (threadIdx.x == 0) {
            tokens[row_number] = -1;
            logprobs[row_number] = CUDART_NAN_F;
        }
        return;
    }

    const Draw draw = draw_from(BlockTeam(), shared, row, vocab, 0, vocab, s, rule, maximum, true);
    if (threadIdx.x == 0) {
        const int token = token_of(draw.ticket);
        tokens[row_number] = token;
        logprobs[row_number] = log_probability(row[token], maximum, rule.scale, draw.everything);
    }
}
