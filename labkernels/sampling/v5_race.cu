// Sampling, v5: the draw first, the nucleus afterwards. Where there is no small k, the threshold of top-p is not searched for.
//   Idea      All tokens race as if there were no top-p, and only the winner is asked whether it belongs to the nucleus: one sum over the tokens with
//             larger logits. It does in top_p of all draws; else all tokens as small as it are out, and the rest runs again with the same noise
//             (race.cuh). The token is the very one that v1 to v4 draw. And a race compares v / weight, without the two logarithms of a score.
//   Predicts  v4 takes six barriers of the cluster and three passes with atomics for a threshold, and two logarithms a token for the draw. Here 1.1
//             races of three barriers and two passes: a third of the time at one row; at 64 rows what 33 instructions a token take, some 10 us.
//   Measured  data/measured/h200/sample_tokens.csv: top-p 0.9 alone, in float32: 78.9 -> 24.8 us for one row, 267 -> 92.7 for 64 (FlashInfer
//             43.8 and 115). Without a filter 23.3 -> 17.8 and 89.2 -> 54.4: FlashInfer takes 46.1 for one row, and is ahead at 64: 47.1.
//   Wastes    Random words and exponentials of all tokens, though hardly any can win: most of the time at many rows.
#include "race.cuh"

// Launch as v4.
template <class T, int WIDTH>
__global__ void __launch_bounds__(512, 2) sample_race(const T* logits, long long row_stride, int vocab, int slice, const long long* previous,
                                                           int previous_count, long long previous_stride, const bool* mask, long long mask_stride,
                                                           Settings all, const float* temperature, const int* top_k, const float* top_p,
                                                           const float* min_p, const float* penalty, const long long* seed, const long long* position,
                                                           long long* tokens, float* logprobs) {
    extern __shared__ __align__(16) char dynamic[];
    __shared__ Race race;
    const auto draw = [&](Selection& selection, const ClusterTeam& team, const RowInMemory<T>& row, int count, int first, const Settings& s, const Rule& rule,
                          float maximum, bool with_everything) {
        return draw_by_race<WIDTH>(race, selection, team, row, count, first, vocab, s, rule, maximum, with_everything);
    };
    sample_in_place<WIDTH>(dynamic, draw, logits, row_stride, vocab, slice, previous, previous_count, previous_stride, mask, mask_stride, all, temperature,
                           top_k, top_p, min_p, penalty, seed, position, tokens, logprobs);
}
