// Sampling, v3: a cluster a row (Hopper). Up to 8 blocks hold the row in their shared memory, and only a few tokens are looked at twice.
//   Idea      Every eight lanes keep the largest logit of their part. The k-th largest of these maxima is a bound: at least k tokens reach it,
//             and hardly more do, 53 on average for k = 50 of 512. Those few go to the first block, which compares each with each. The row
//             is read once, all of its blocks at the same time, in one launch without any memory for results in between.
//   Predicts  Three barriers of the cluster and a launch, some 6 us for one row; at 64 rows 33 MB of logits, 7.6 us, and two waves of blocks.
//   Measured  data/measured/h200/sample_tokens.csv: top-k 50, top-p 0.9 in float32: 369 -> 13.5 us for one row, 379 -> 35.0 for 64 (FlashInfer
//             61.6 and 72.7, torch.topk first 130 and 225).
//   Wastes    Without a small k, and where a bound leaves too many, thresholds are v2's radix search: in shared memory, but with three
//             barriers of the cluster for each 11 bits.
#include "candidates.cuh"

// A cluster of `gridDim.x / rows` blocks a row; each has `slice` tokens of it, a multiple of 8, in dynamic shared memory behind Shared: `slice`
// floats, then (slice + 31) / 32 words if there are previous tokens. With WIDTH > 1 rows lie on multiples of it, and vocab is one.
template <class T, int WIDTH>
__global__ void __launch_bounds__(1024, 1) sample_cluster(const T* logits, long long row_stride, int vocab, int slice, const long long* previous,
                                                      int previous_count, long long previous_stride, const bool* mask, long long mask_stride,
                                                      Settings all, const float* temperature, const int* top_k, const float* top_p,
                                                      const float* min_p, const float* penalty, const long long* seed, const long long* position,
                                                      long long* tokens, float* logprobs) {
    extern __shared__ __align__(16) char dynamic[];
    Shared& shared = *reinterpret_cast<Shared*>(dynamic);
    float* values = reinterpret_cast<float*>(dynamic + sizeof(Shared));
    unsigned* before = reinterpret_cast<unsigned*>(values + slice);

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

    float mine = -CUDART_INF_F;
    bool without = false;  // NaN or +inf, which have no distribution
#pragma unroll 4
    for (int i = WIDTH * threadIdx.x; i < count; i += WIDTH * blockDim.x) {
        float vector[WIDTH];
        row.load(i, vector);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            without |= !(vector[j] < CUDART_INF_F);
            mine = fmaxf(mine, vector[j]);
        }
        store_vector(values + i, vector);
    }
    const float maximum = share_maxima(shared, team, mine, without);
    if (!(maximum > -CUDART_INF_F)) {
        if (team.rank == 0 && threadIdx.x == 0) {
            tokens[row_number] = -1;
            if (logprobs) logprobs[row_number] = CUDART_NAN_F;
        }
        return;
    }

    if (rule.keep <= FEW || vocab <= CANDIDATES) {
        if (logprobs) {
            Amount everything = 0;
            for (int i = threadIdx.x; i < count; i += blockDim.x) everything += mass(weight(values[i], maximum, rule.scale));
            add_everything(shared, team, everything);
        }
        const float bound = find_bound(shared, team, rule);
        for (int i = WIDTH * threadIdx.x; i < count; i += WIDTH * blockDim.x) {
            float vector[WIDTH];
            load_vector(values + i, vector);
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) collect(shared, team, vector[j], bound, first + i + j);
        }
        if (draw_if_few(shared, team, s, rule, maximum, tokens + row_number, logprobs ? logprobs + row_number : nullptr)) return;
    }
    const Draw draw = draw_from(team, shared.selection, values, count, first, vocab, s, rule, maximum, logprobs);
    if (threadIdx.x == 0 && token_of(draw.ticket) / slice == team.rank) {
        const int token = token_of(draw.ticket);
        tokens[row_number] = token;
        if (logprobs) logprobs[row_number] = log_probability(values[token - first], maximum, rule.scale, draw.everything);
    }
    team.sync();  // a block that leaves takes its shared memory with it
}
