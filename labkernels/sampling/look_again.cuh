// What v4 and v5 share: a row that stays where it is. Each thread knows the largest logit of its own few vectors, and those whose maximum is large
// enough have their vectors read again, by their whole warp.
#pragma once
#include "candidates.cuh"

// For each vector of the threads of a warp that `again` holds for: visit(vector, its first token). A lane has a vector each: one wait for L2, not one
// after the other.
template <int WIDTH, class Row, class Visit>
__device__ inline void visit_again(const Row& row, int count, bool again, Visit visit) {
    for (unsigned lanes = __ballot_sync(FULL_WARP, again); lanes; lanes &= lanes - 1) {
        const int thread = __ffs(lanes) - 1 - lane_id() + threadIdx.x;
        for (int i = WIDTH * (thread + lane_id() * blockDim.x); i < count; i += WIDTH * 32 * blockDim.x) {
            float vector[WIDTH];
            row.template load<WIDTH>(i, vector);
            visit(vector, i);
        }
    }
}

// The largest logit of a thread's vectors, and whether it has found NaN or +inf, which have no distribution.
template <int WIDTH, class Row>
__device__ inline float largest_of(const Row& row, int count, bool& without) {
    float mine = -CUDART_INF_F;
    constexpr int AT_ONCE = WIDTH == 1 ? 6 : 8;  // loads, as registers allow
#pragma unroll AT_ONCE
    for (int i = WIDTH * threadIdx.x; i < count; i += WIDTH * blockDim.x) {
        float vector[WIDTH];
        row.template load<WIDTH>(i, vector);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            without |= !(vector[j] < CUDART_INF_F);
            mine = fmaxf(mine, vector[j]);
        }
    }
    return mine;
}

// The draw where a bound leaves few candidates; false if it leaves too many, or there is no small k. `mine` is the thread's largest logit.
template <int WIDTH, class Row>
__device__ inline bool draw_from_few(Shared& shared, const ClusterTeam& team, const Row& row, int count, int first, int vocab, const Settings& s,
                                     const Rule& rule, float maximum, float mine, long long* token, float* logprob) {
    if (rule.keep > FEW && vocab > CANDIDATES) return false;
    if (logprob) {
        Amount everything = 0;
        for (int i = WIDTH * threadIdx.x; i < count; i += WIDTH * blockDim.x) {
            float vector[WIDTH];
            row.template load<WIDTH>(i, vector);
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) everything += mass(weight(vector[j], maximum, rule.scale));
        }
        add_everything(shared, team, everything);
    }
    const float bound = find_bound(shared, team, rule);
    visit_again<WIDTH>(row, count, mine >= bound, [&](const float(&vector)[WIDTH], int i) {
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) collect(shared, team, vector[j], bound, first + i + j);
    });
    return draw_if_few(shared, team, s, rule, maximum, token, logprob);
}

// A kernel's whole work: a block's part of one row, from the arguments that v3 has, too, to the token. `dynamic` is its shared memory: behind
// Shared there are only the words for previous tokens. `draw` is asked where a bound leaves too many candidates:
// draw(selection, team, row, count, first, settings, rule, maximum, with_everything).
template <int WIDTH, class T, class DrawFromMany>
__device__ __forceinline__ void sample_in_place(char* dynamic, DrawFromMany draw, const T* logits, long long row_stride, int vocab, int slice,
                                                const long long* previous, int previous_count, long long previous_stride, const bool* mask,
                                                long long mask_stride, Settings all, const float* temperature, const int* top_k, const float* top_p,
                                                const float* min_p, const float* penalty, const long long* seed, const long long* position,
                                                long long* tokens, float* logprobs) {
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
    const Draw won = draw(shared.selection, team, row, count, first, s, rule, maximum, logprob != nullptr);
    if (threadIdx.x == 0 && token_of(won.ticket) / slice == team.rank) {
        const int token = token_of(won.ticket);
        tokens[row_number] = token;
        if (logprob) *logprob = log_probability(row[token - first], maximum, rule.scale, won.everything);
    }
    team.sync();  // a block that leaves takes its shared memory with it
}
