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
constexpr int MOST_GROUPS = 512;  // of eight lanes each, whose maxima tell the bound

struct Shared {
    Selection selection;
    float maxima[MOST_GROUPS];
    unsigned bound;
    // Of the first block, and for the whole cluster:
    int candidates, token[CANDIDATES];
    float value[CANDIDATES];
    Amount amount[CANDIDATES], above[CANDIDATES], ticket[CANDIDATES], everything;
};
static_assert(sizeof(Shared) == 35168, "as sample_tokens_variants.py knows it");

__device__ inline int total_of_warp(int value) { return __reduce_add_sync(FULL_WARP, value); }

// A key that `wanted` of these maxima reach, and few more; the lowest finite one if there are no `wanted` finite ones. For one warp.
__device__ inline unsigned bound_of(const float* maxima, int count, int wanted) {
    unsigned keys[MOST_GROUPS / 32];
    unsigned high = 0, low = 0xffffffffu;
#pragma unroll
    for (int i = 0; i < MOST_GROUPS / 32; ++i) {
        const int place = 32 * i + lane_id();
        keys[i] = place < count ? ordered(maxima[place]) : 0;
        high = max(high, keys[i]);
        if (place < count) low = min(low, keys[i]);
    }
    high = __reduce_max_sync(FULL_WARP, high);
    low = max(__reduce_min_sync(FULL_WARP, low), LOWEST_FINITE);
    int reach = 0;
#pragma unroll
    for (int i = 0; i < MOST_GROUPS / 32; ++i) reach += keys[i] >= low;
    if (total_of_warp(reach) < wanted) return LOWEST_FINITE;
    while (low + 1 < high) {
        const unsigned middle = low + (high - low) / 2;
        reach = 0;
#pragma unroll
        for (int i = 0; i < MOST_GROUPS / 32; ++i) reach += keys[i] >= middle;
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

// The draw from `count` candidates, which hold all tokens that top-k keeps, and its results. For all threads of one block.
__device__ inline void draw_from_candidates(Shared& shared, int count, const Settings& s, const Rule& rule, float maximum, long long* token,
                                            float* logprob) {
    const int half = blockDim.x / 2;  // of the threads work out masses, the others noise
    for (int i = threadIdx.x % half; i < count; i += half) {
        const float value = shared.value[i], e = weight(value, maximum, rule.scale);
        if (threadIdx.x < half) shared.amount[i] = mass(e);
        else shared.ticket[i] = rule.below_min_p(e) ? 0 : ticket(score(value, maximum, rule, s, shared.token[i]), shared.token[i]);
    }
    __syncthreads();
    for (int first = 0; first < count; first += blockDim.x / 8) {  // eight lanes a candidate
        const int i = first + threadIdx.x / 8;
        const float value = i < count ? shared.value[i] : CUDART_INF_F;
        Amount above = 0;
        int larger = 0;
        for (int j = threadIdx.x % 8; j < count; j += 8) {
            const bool is_larger = shared.value[j] > value;
            larger += is_larger;
            above += is_larger ? shared.amount[j] : 0;
        }
#pragma unroll
        for (int distance = 4; distance > 0; distance /= 2) {
            larger += __shfl_xor_sync(FULL_WARP, larger, distance);
            above += __shfl_xor_sync(FULL_WARP, above, distance);
        }
        if (threadIdx.x % 8 == 0 && i < count) shared.above[i] = larger < rule.keep ? above : ~static_cast<Amount>(0);
    }
    __syncthreads();
    if (warp_id()) return;

    Amount wanted = ~static_cast<Amount>(0), best = 0;
    if (rule.top_p < 1.0f) {
        Amount total = 0;
        for (int i = lane_id(); i < count; i += 32) total += shared.above[i] == wanted ? 0 : shared.amount[i];
        wanted = mass_wanted(rule.top_p, warp_sum(total));
    }
    for (int i = lane_id(); i < count; i += 32) {
        if (shared.above[i] < wanted && shared.ticket[i] > best) best = shared.ticket[i];
    }
    best = warp_reduce(best, [](Amount a, Amount b) { return a > b ? a : b; });
    for (int i = lane_id(); i < count; i += 32) {
        if (shared.ticket[i] != best) continue;
        *token = shared.token[i];
        if (logprob) *logprob = log_probability(shared.value[i], maximum, rule.scale, shared.everything);
    }
}

// The maximum of the row from those of the threads, in all threads of the cluster; NaN if a thread has found something `without` a distribution.
// Between cluster_arrive() and here each block has begun.
__device__ inline float share_maxima(Shared& shared, const ClusterTeam& team, float mine, bool without) {
    const int groups = blockDim.x / 8;
#pragma unroll
    for (int distance = 4; distance > 0; distance /= 2) mine = fmaxf(mine, __shfl_xor_sync(FULL_WARP, mine, distance));
    if (__any_sync(FULL_WARP, without)) mine = CUDART_NAN_F;
    cluster_wait();
    const int rank = lane_id() % 8;  // lane r of a group tells block r
    if (rank < team.size) team.of(shared.maxima, rank)[team.rank * groups + threadIdx.x / 8] = mine;
    team.sync();
    float maximum = -CUDART_INF_F;
    without = false;
    for (int i = lane_id(); i < groups * team.size; i += 32) {
        without |= shared.maxima[i] != shared.maxima[i];
        maximum = fmaxf(maximum, shared.maxima[i]);
    }
    maximum = warp_max(maximum);
    return __any_sync(FULL_WARP, without) ? CUDART_NAN_F : maximum;
}

// A logit that all tokens reach which top-k keeps. For all threads of the block.
__device__ inline float find_bound(Shared& shared, const ClusterTeam& team, const Rule& rule) {
    if (warp_id() == 0) {
        const unsigned bound = rule.keep <= FEW ? bound_of(shared.maxima, blockDim.x / 8 * team.size, rule.keep) : LOWEST_FINITE;
        if (lane_id() == 0) shared.bound = bound;
    }
    __syncthreads();
    return from_ordered(shared.bound);
}

// A token that reaches the bound goes to the first block, to any place; there may be more than there are places.
__device__ inline void collect(Shared& shared, const ClusterTeam& team, float logit, float bound, int token) {
    if (logit < bound) return;
    Shared& of_first = *team.of(&shared, 0);
    const int place = atomicAdd(&of_first.candidates, 1);
    if (place < CANDIDATES) {
        of_first.value[place] = logit;
        of_first.token[place] = token;
    }
}

// Draws, where there was place for all candidates, and says whether it did. For all threads of the cluster.
__device__ inline bool draw_if_few(Shared& shared, const ClusterTeam& team, const Settings& s, const Rule& rule, float maximum, long long* token,
                                   float* logprob) {
    team.sync();
    const int count = *team.of(&shared.candidates, 0);
    cluster_arrive();  // the first block stays until the others know the count
    const bool few = count <= CANDIDATES;
    if (few && team.rank == 0) draw_from_candidates(shared, count, s, rule, maximum, token, logprob);
    cluster_wait();
    return few;
}

// The mass of the whole row, for a log-probability, adds up in the first block. For all threads of a block.
__device__ inline void add_everything(Shared& shared, const ClusterTeam& team, Amount everything) {
    everything = block_sum(everything);
    if (threadIdx.x == 0) atomicAdd(&team.of(&shared, 0)->everything, everything);
}
