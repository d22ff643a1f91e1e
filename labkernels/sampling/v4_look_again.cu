// Sampling, v4: look again. As v3, but nothing of the row is kept: who has seen a large logit reads its part once more.
//   Idea      Each thread knows the largest logit of its own few vectors. Once the bound is known, only threads whose maximum reaches it have a
//             candidate: some 50 of 4096 read their 128 bytes again, out of L2. Without the row in shared memory two blocks of 512 threads fit on a
//             multiprocessor, and 64 rows run at the same time.
//   Predicts  No store of the row and no second walk; at 64 rows one wave where v3 has two: a third less at 1 row, half at 64.
//   Measured  data/measured/h200/sample_tokens.csv: top-k 50, top-p 0.9 in float32: 13.6 -> 12.9 us for one row, 35.2 -> 32.7 for 64, 104 -> 82.1
//             for 256. Top-p alone: 62.3 -> 78.6 and, for 64 rows, 185 -> 268.
//   Wastes    Latency: a cluster's barrier, a bound, a barrier, a handful of comparisons, each of which waits for the one before. Without a small k
//             the radix search reads the row from L2 in each of its passes.
#include "look_again.cuh"

// As in v3, without the floats in dynamic shared memory: behind Shared there are only the words for previous tokens.
template <class T, int WIDTH>
__global__ void __launch_bounds__(512, 2) sample_look_again(const T* logits, long long row_stride, int vocab, int slice, const long long* previous,
                                                           int previous_count, long long previous_stride, const bool* mask, long long mask_stride,
                                                           Settings all, const float* temperature, const int* top_k, const float* top_p,
                                                           const float* min_p, const float* penalty, const long long* seed, const long long* position,
                                                           long long* tokens, float* logprobs) {
    extern __shared__ __align__(16) char dynamic[];
    Shared& shared = *reinterpret_cast<Shared*>(dynamic);
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
    const Draw draw = draw_from(team, shared.selection, row, count, first, vocab, s, rule, maximum, logprob != nullptr);
    if (threadIdx.x == 0 && token_of(draw.ticket) / slice == team.rank) {
        const int token = token_of(draw.ticket);
        tokens[row_number] = token;
        if (logprob) *logprob = log_probability(row[token - first], maximum, rule.scale, draw.everything);
    }
    team.sync();  // a block that leaves takes its shared memory with it
}
