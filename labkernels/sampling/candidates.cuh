// What the versions on clusters share: a bound that leaves few candidates, and the draw from these.
#pragma once
#include "cluster.cuh"
#include "row.cuh"
#include "select.cuh"

struct ClusterTeam {
    int rank, size;
    __device__ void sync() const { cluster_sync(); }
    template <class P>
    __device__ P* of(P* pointer, int rank) const { return map_shared_rank(pointer, rank); }
};

constexpr int FEW = 128;          // top_k up to which a bound is looked for
constexpr int CANDIDATES = 512;  // that reach it, at most

struct Shared {
    Selection selection;
    float warp_maximum[32 * MOST_BLOCKS];
    float value[CANDIDATES];  // of this block; the first block's then are the cluster's
    int token[CANDIDATES];
    Amount amount[CANDIDATES], above[CANDIDATES];
    Amount everything;
    unsigned bound;
    int candidates;
};
static_assert(sizeof(Shared) == 30048, "as sample_tokens_variants.py knows it");

__device__ inline int total_of_warp(int value) { return __reduce_add_sync(FULL_WARP, value); }

// A key that `wanted` of these maxima reach, and few more; the lowest finite one if there are no `wanted` finite ones. For one warp.
__device__ inline unsigned bound_of(const float* maxima, int count, int wanted) {
    unsigned keys[MOST_BLOCKS];
    unsigned high = 0, low = 0xffffffffu;
#pragma unroll
    for (int i = 0; i < MOST_BLOCKS; ++i) {
        const int place = 32 * i + lane_id();
        keys[i] = place < count ? ordered(maxima[place]) : 0;
        high = max(high, keys[i]);
        if (place < count) low = min(low, keys[i]);
    }
    high = __reduce_max_sync(FULL_WARP, high);
    low = max(__reduce_min_sync(FULL_WARP, low), LOWEST_FINITE);
    int reach = 0;
#pragma unroll
    for (int i = 0; i < MOST_BLOCKS; ++i) reach += keys[i] >= low;
    if (total_of_warp(reach) < wanted) return LOWEST_FINITE;
    while (low + 1 < high) {
        const unsigned middle = low + (high - low) / 2;
        reach = 0;
#pragma unroll
        for (int i = 0; i < MOST_BLOCKS; ++i) reach += keys[i] >= middle;
        reach = total_of_warp(reach);
        if (reach < wanted) {
            high = middle;
        } else {
            low = middle;
            if (reach <= wanted + wanted / 8) break;
        }
    }
    return low;
}

// The draw from `count` candidates, which hold all tokens that top-k keeps. For all threads of one block.
__device__ inline unsigned long long draw_from_candidates(Shared& shared, int count, const Settings& s, const Rule& rule, float maximum) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) shared.amount[i] = mass(weight(shared.value[i], maximum, rule.scale));
    __syncthreads();
    Amount total = 0;
    for (int i = warp_id(); i < count; i += blockDim.x / 32) {
        const float value = shared.value[i];
        Amount above = 0;
        int larger = 0;
        for (int j = lane_id(); j < count; j += 32) {
            const bool is_larger = shared.value[j] > value;
            larger += is_larger;
            above += is_larger ? shared.amount[j] : 0;
        }
        const bool kept = total_of_warp(larger) < rule.keep;
        above = warp_sum(above);
        if (lane_id() == 0) {
            shared.above[i] = kept ? above : ~static_cast<Amount>(0);
            total += kept ? shared.amount[i] : 0;
        }
    }
    Amount wanted = ~static_cast<Amount>(0);
    if (rule.top_p < 1.0f) wanted = mass_wanted(rule.top_p, block_sum(total));
    else __syncthreads();

    unsigned long long best = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const float value = shared.value[i];
        if (shared.above[i] >= wanted || rule.below_min_p(weight(value, maximum, rule.scale))) continue;
        const unsigned long long mine = ticket(score(value, maximum, rule, s, shared.token[i]), shared.token[i]);
        best = mine > best ? mine : best;
    }
    return block_max(best);
}

// The maximum of the row from those of the threads, in all threads of the cluster; NaN if a thread has found something `without` a distribution.
// Between cluster_arrive() and here each block has begun.
__device__ inline float share_maxima(Shared& shared, const ClusterTeam& team, float mine, bool without) {
    const int warps = blockDim.x / 32;
    const float of_warp = __any_sync(FULL_WARP, without) ? CUDART_NAN_F : warp_max(mine);
    cluster_wait();
    if (lane_id() < team.size) team.of(shared.warp_maximum, lane_id())[team.rank * warps + warp_id()] = of_warp;
    team.sync();
    float maximum = -CUDART_INF_F;
    without = false;
    for (int i = lane_id(); i < warps * team.size; i += 32) {
        without |= shared.warp_maximum[i] != shared.warp_maximum[i];
        maximum = fmaxf(maximum, shared.warp_maximum[i]);
    }
    maximum = warp_max(maximum);
    return __any_sync(FULL_WARP, without) ? CUDART_NAN_F : maximum;
}

// A logit that all tokens reach which top-k keeps. For all threads of the block.
__device__ inline float find_bound(Shared& shared, const ClusterTeam& team, const Rule& rule) {
    if (warp_id() == 0) {
        const unsigned bound = rule.keep <= FEW ? bound_of(shared.warp_maximum, blockDim.x / 32 * team.size, rule.keep) : LOWEST_FINITE;
        if (lane_id() == 0) shared.bound = bound;
    }
    __syncthreads();
    return from_ordered(shared.bound);
}

// This block's tokens that reach the bound, in any order; their number may be more than there is place for.
__device__ inline void collect(Shared& shared, float logit, float bound, int token) {
    if (logit < bound) return;
    const int place = atomicAdd(&shared.candidates, 1);
    if (place < CANDIDATES) {
        shared.value[place] = logit;
        shared.token[place] = token;
    }
}

// Appends to the first block's candidates those of the others, and adds up the masses of their parts. For the first block.
__device__ inline Amount gather(Shared& shared, const ClusterTeam& team) {
    int place = shared.candidates;
    Amount everything = shared.everything;
    for (int rank = 1; rank < team.size; ++rank) {
        const int more = *team.of(&shared.candidates, rank);
        for (int i = threadIdx.x; i < more; i += blockDim.x) {
            shared.value[place + i] = team.of(shared.value, rank)[i];
            shared.token[place + i] = team.of(shared.token, rank)[i];
        }
        place += more;
        everything += *team.of(&shared.everything, rank);
    }
    return everything;
}

// Draws, where there is place for all candidates, and says whether it did. For all threads of the cluster.
__device__ inline bool draw_if_few(Shared& shared, const ClusterTeam& team, const Settings& s, const Rule& rule, float maximum, long long row,
                                   long long* tokens, float* logprobs) {
    team.sync();
    int count = 0;
    for (int rank = 0; rank < team.size; ++rank) count += *team.of(&shared.candidates, rank);
    if (count > CANDIDATES) return false;
    const Amount everything = team.rank == 0 ? gather(shared, team) : 0;
    team.sync();  // the first block has read what it needs: the others may leave
    if (team.rank) return true;
    const unsigned long long best = draw_from_candidates(shared, count, s, rule, maximum);
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        if (shared.token[i] != token_of(best)) continue;
        tokens[row] = shared.token[i];
        if (logprobs) logprobs[row] = log_probability(shared.value[i], maximum, rule.scale, everything);
    }
    return true;
}
