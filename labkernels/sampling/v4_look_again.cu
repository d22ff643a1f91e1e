// Sampling, v4: look again. As v3, but nothing of the row is kept: who has seen a large logit reads its part once more.
//   Idea      Each thread knows the largest logit of its own few vectors. Once the bound is known, only threads whose maximum reaches it have a
//             candidate: some 50 of 4096 read their 128 bytes again, out of L2. Without the row in shared memory two blocks of 512 threads fit on a
//             multiprocessor, and 64 rows run at the same time.
//   Predicts  No store of the row and no second walk; at 64 rows one wave where v3 has two: a third less at 1 row, half at 64.
//   Measured  data/measured/h200/sample_tokens.csv: top-k 50, top-p 0.9 in float32: 13.5 -> 12.9 us for one row, 35.0 -> 32.6 for 64, 103 ->
//             81.7 for 256 (FlashInfer 61.6, 72.7, 145). Top-p alone: 62.3 -> 78.9 and, for 64 rows, 184 -> 267.
//   Wastes    Latency: a cluster's barrier, a bound, a barrier, a handful of comparisons, each of which waits for the one before. Without a small k
//             the radix search reads the row from L2 in each of its passes.
#include "look_again.cuh"

// Launch as v3, without its floats in dynamic shared memory.
template <class T, int WIDTH>
__global__ void __launch_bounds__(512, 2) sample_look_again(const T* logits, long long row_stride, int vocab, int slice, const long long* previous,
                                                           int previous_count, long long previous_stride, const bool* mask, long long mask_stride,
                                                           Settings all, const float* temperature, const int* top_k, const float* top_p,
                                                           const float* min_p, const float* penalty, const long long* seed, const long long* position,
                                                           long long* tokens, float* logprobs) {
    extern __shared__ __align__(16) char dynamic[];
    const auto draw = [&](Selection& selection, const ClusterTeam& team, const RowInMemory<T>& row, int count, int first, const Settings& s, const Rule& rule,
                          float maximum, bool with_everything) {
        return draw_from(team, selection, row, count, first, vocab, s, rule, maximum, with_everything);
    };
    sample_in_place<WIDTH>(dynamic, draw, logits, row_stride, vocab, slice, previous, previous_count, previous_stride, mask, mask_stride, all, temperature,
                           top_k, top_p, min_p, penalty, seed, position, tokens, logprobs);
}
