// Sampling, v5: the draw first, the nucleus afterwards. Where there is no small k, the threshold of top-p is not searched for.
//   Idea      All tokens race as if there were no top-p, and only the winner is asked whether it belongs to the nucleus: one sum over the tokens with
//             larger logits. It does in top_p of all draws; else all tokens as small as it are out, and the rest runs again with the same noise
//             (race.cuh). The token is the very one that v1 to v4 draw. And a race compares v / weight, without the two logarithms of a score.
//   Predicts  v4 takes six barriers of the cluster and three passes with atomics for a threshold, and two logarithms a token for the draw. Here 1.1
//             races of three barriers and two passes: a third of the time at one row; at 64 rows what 33 instructions a token take, some 10 us.
//   Measured  data/measured/h200/sample_tokens.csv: top-p 0.9 alone, in float32: 78.6 -> 24.9 us for one row, 268 -> 93.0 for 64.
//   Wastes    Random words and exponentials of all tokens, though hardly any can win: most of the time at many rows.
#include "race.cuh"

// As v4.
template <class T, int WIDTH>
__global__ void __launch_bounds__(512, 2) sample_race(const T* logits, long long row_stride, int vocab, int slice, const long long* previous,
                                                           int previous_count, long long previous_stride, const bool* mask, long long mask_stride,
                                                           Settings all, const float* temperature, const int* top_k, const float* top_p,
                                                           const float* min_p, const float* penalty, const long long* seed, const long long* position,
                                                           long long* tokens, float* logprobs) {
    extern __shared__ __align__(16) char dynamic[];
    Shared& shared = *reinterpret_cast<Shared*>(dynamic);
    __shared__ Race race;
    unsigned* before = reinterpret_cast<unsigned*>(dynamic + sizeof(Shared));

    const ClusterTeam team = {cluster_rank(), cluster_size()};
    const long long row_number = blockIdx.x / team.size;
    const int first = team.rank * slice, count = min(slice, max(0, vocab - first));
    const Settings s = settings_of(row_number, all, temperature, top_k, top_p, min_p, penalty, seed, position);
    const Rule rule(s, vocab);
    if (threadIdx.x == 0) {
        shared.candidates = 0;
        shared.everything = 0;
    }
    if (previous_count) mark_previous(before, previous + row_number * previous_stride, previous_count, first, count);
    cluster_arrive();
    const RowInMemory<T> row = {logits + row_number * row_stride + first, previous_count ? before : nullptr,
                                mask ? mask + row_number * mask_stride + first : nullptr, s.penalty};

    bool without = false;
    const float mine = largest_of<WIDTH>(row, count, without);
    const float maximum = share_maxima(shared, team, mine, without);
    if (!(maximum > -CUDART_INF_F)) {
        if (team.rank == 0 && threadIdx.x == 0) {
            tokens[row_number] = -1;
            if (logprobs) logprobs[row_number] = CUDART_NAN_F;
        }
        return;
    }

    float* const logprob = logprobs ? logprobs + row_number : nullptr;
    if (draw_from_few<WIDTH>(shared, team, row, count, first, vocab, s, rule, maximum, mine, tokens + row_number, logprob)) return;
    const Draw draw = draw_by_race<WIDTH>(race, shared.selection, team, row, count, first, vocab, s, rule, maximum, logprob != nullptr);
    if (threadIdx.x == 0 && token_of(draw.ticket) / slice == team.rank) {
        const int token = token_of(draw.ticket);
        tokens[row_number] = token;
        if (logprob) *logprob = log_probability(row[token - first], maximum, rule.scale, draw.everything);
    }
    team.sync();  // a block that leaves takes its shared memory with it
}
