// Sampling, v1: naive. One block a row. Thresholds are found by walking down: the largest logit, the next one, and so on.
//   Idea      What is kept is whatever lies above a threshold, so nothing has to be sorted: each pass over the row finds the next smaller
//             logit, how many tokens have it and what mass. Top-k stops when k are counted, top-p when p of the mass is.
//   Predicts  Two passes for every token kept, each a read of the row: at k = 50 some 100 reads, at 128256 tokens 40 us each for one block.
//   Measured  data/measured/h200/sample_tokens.csv: 18.0 ms for a row of 128256 float32 logits, top-k 50 and top-p 0.9.
//   Wastes    Nearly every pass: one that counts all candidate thresholds at once would do for hundreds. All but one multiprocessor.
#include "block.cuh"
#include "draw.cuh"

template <class T>
struct Row {
    const T* logits;
    long long step;
    int vocab;
    const long long* previous;
    int previous_count;
    const bool* mask;
    float penalty;

    __device__ float operator[](int token) const {
        bool before = mask && mask[token];
        for (int i = 0; i < previous_count; ++i) before |= previous[i] == token;
        return penalised(to_float(logits[token * step]), before, penalty);
    }
};

struct Level {
    float logit;                // the largest one below the limit
    unsigned long long tokens;  // that have it
};

template <class T>
__device__ Level next_level(const Row<T>& row, float limit) {
    float logit = -CUDART_INF_F;
    for (int token = threadIdx.x; token < row.vocab; token += blockDim.x) {
        const float value = row[token];
        if (value < limit) logit = fmaxf(logit, value);
    }
    logit = block_max(logit);
    unsigned long long tokens = 0;
    for (int token = threadIdx.x; token < row.vocab; token += blockDim.x) tokens += row[token] == logit;
    return {logit, block_reduce(tokens, 0ull, [](unsigned long long a, unsigned long long b) { return a + b; })};
}

template <class T>
__global__ void sample_naive(const T* logits, long long row_stride, long long step, int vocab, const long long* previous, int previous_count,
                             long long previous_stride, const bool* mask, long long mask_stride, Settings all, const float* temperature,
                             const int* top_k, const float* top_p, const float* min_p, const float* penalty, const long long* seed,
                             const long long* position, long long* tokens, float* logprobs) {
    const long long row_number = blockIdx.x;
    const Settings s = settings_of(row_number, all, temperature, top_k, top_p, min_p, penalty, seed, position);
    const Rule rule(s, vocab);
    const Row<T> row = {logits + row_number * row_stride, step, vocab, previous + row_number * previous_stride, previous_count,
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

    float threshold = -CUDART_INF_F;
    unsigned long long total = 0;  // the mass of all that top-k leaves
    if (rule.keep < vocab || rule.top_p < 1.0f) {
        unsigned long long counted = 0;
        for (float limit = CUDART_INF_F; counted < static_cast<unsigned long long>(rule.keep);) {
            const Level level = next_level(row, limit);
            if (level.logit == -CUDART_INF_F) break;
            counted += level.tokens;
            total += level.tokens * mass(weight(level.logit, maximum, rule.scale));
            threshold = limit = level.logit;
        }
    }
    if (rule.top_p < 1.0f) {
        const unsigned long long wanted = mass_wanted(rule.top_p, total);
        unsigned long long above = 0;
        for (float limit = CUDART_INF_F; above < wanted;) {
            const Level level = next_level(row, limit);
            if (level.logit < threshold || level.logit == -CUDART_INF_F) break;
            above += level.tokens * mass(weight(level.logit, maximum, rule.scale));
            limit = level.logit;
            if (above >= wanted) threshold = limit;
        }
    }

    unsigned long long best = 0, everything = 0;
    for (int token = threadIdx.x; token < vocab; token += blockDim.x) {
        const float value = row[token], e = weight(value, maximum, rule.scale);
        everything += mass(e);
        if (value == -CUDART_INF_F || value < threshold || rule.below_min_p(e)) continue;
        const unsigned long long mine = ticket(score(value, maximum, rule, s, token), token);
        best = mine > best ? mine : best;
    }
    best = block_reduce(best, 0ull, [](unsigned long long a, unsigned long long b) { return a > b ? a : b; });
    everything = block_reduce(everything, 0ull, [](unsigned long long a, unsigned long long b) { return a + b; });
    if (threadIdx.x == 0) {
        const int token = token_of(best);
        tokens[row_number] = token;
        logprobs[row_number] = (row[token] - maximum) * rule.scale - logf(static_cast<float>(everything) / MASS_UNITS);
    }
}
