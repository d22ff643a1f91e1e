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
