// Sampling, v3: a cluster a row (Hopper). Up to 8 blocks hold the row in their shared memory, and only a few tokens are looked at twice.
//   Idea      Each warp keeps the largest logit of its part. The k-th largest of these maxima is a bound: at least k tokens reach it, and
//             hardly more do, 53 on average for k = 50 and 256 warps. Those few go to the first block, which compares each with each. The
//             row is read once, all of its blocks at the same time, in one launch without any memory for results in between.
//   Predicts  Three barriers of the cluster and a launch, some 6 us for one row; at 64 rows 33 MB of logits, 7.6 us, and two waves of blocks.
//   Measured  data/measured/h200/sample_tokens.csv.
//   Wastes    Without a small k, and where a bound leaves too many, thresholds are v2's radix search: in shared memory, but with three
//             barriers of the cluster for each 11 bits.
#include "cluster.cuh"
#include "select.cuh"
#include "vector.cuh"

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

// This block's tokens that reach the bound, in any order; their number may be more than there is place for.
template <int WIDTH>
__device__ void collect(Shared& shared, const float* values, int count, int first) {
    const float bound = from_ordered(shared.bound);
    for (int i = WIDTH * threadIdx.x; i < count; i += WIDTH * blockDim.x) {
        float vector[WIDTH];
        load_vector(values + i, vector);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            if (vector[j] < bound) continue;
            const int place = atomicAdd(&shared.candidates, 1);
            if (place < CANDIDATES) {
                shared.value[place] = vector[j];
                shared.token[place] = first + i + j;
            }
        }
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
    const int first = team.rank * slice, count = min(slice, max(0, vocab - first)), warps = blockDim.x / 32;
    const Settings s = settings_of(row_number, all, temperature, top_k, top_p, min_p, penalty, seed, position);
    const Rule rule(s, vocab);
    logits += row_number * row_stride + first;
    if (mask) mask += row_number * mask_stride + first;
    if (previous_count) mark_previous(before, previous + row_number * previous_stride, previous_count, first, count);
    if (threadIdx.x == 0) {
        shared.candidates = 0;
        shared.everything = 0;
    }
    cluster_arrive();

    float maximum = -CUDART_INF_F;
    bool without = false;  // NaN or +inf, which have no distribution
#pragma unroll 4
    for (int i = WIDTH * threadIdx.x; i < count; i += WIDTH * blockDim.x) {
        float vector[WIDTH];
        load_vector(logits + i, vector);
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            bool seen = false;
            if (previous_count) seen = before[(i + j) / 32] >> (i + j) % 32 & 1;
            if (mask) seen |= mask[i + j];
            vector[j] = penalised(vector[j], seen, s.penalty);
            without |= !(vector[j] < CUDART_INF_F);
            maximum = fmaxf(maximum, vector[j]);
        }
        store_vector(values + i, vector);
    }
    if (__any_sync(FULL_WARP, without)) maximum = CUDART_NAN_F;
    else maximum = warp_max(maximum);
    cluster_wait();  // every block has started, and its shared memory is there
    if (lane_id() < team.size) team.of(shared.warp_maximum, lane_id())[team.rank * warps + warp_id()] = maximum;
    team.sync();

    maximum = -CUDART_INF_F;
    without = false;
    for (int i = lane_id(); i < warps * team.size; i += 32) {
        without |= shared.warp_maximum[i] != shared.warp_maximum[i];
        maximum = fmaxf(maximum, shared.warp_maximum[i]);
    }
    maximum = warp_max(maximum);
    if (__any_sync(FULL_WARP, without) || maximum == -CUDART_INF_F) {  // as all warps of the cluster find
        if (team.rank == 0 && threadIdx.x == 0) {
            tokens[row_number] = -1;
            if (logprobs) logprobs[row_number] = CUDART_NAN_F;
        }
        return;
    }

    Amount everything = 0;
    bool few = rule.keep <= FEW || vocab <= CANDIDATES;
    if (few) {
        if (warp_id() == 0) {
            const unsigned bound = rule.keep <= FEW ? bound_of(shared.warp_maximum, warps * team.size, rule.keep) : LOWEST_FINITE;
            if (lane_id() == 0) shared.bound = bound;
        }
        if (logprobs) {
            for (int i = threadIdx.x; i < count; i += blockDim.x) everything += mass(weight(values[i], maximum, rule.scale));
            everything = block_sum(everything);
            if (threadIdx.x == 0) shared.everything = everything;
        }
        __syncthreads();
        collect<WIDTH>(shared, values, count, first);
        team.sync();
        int total = 0;
        for (int rank = 0; rank < team.size; ++rank) total += *team.of(&shared.candidates, rank);
        few = total <= CANDIDATES;
        if (few) {
            if (team.rank == 0) everything = gather(shared, team);
            team.sync();  // the first block has read what it needs: the others may leave
            if (team.rank) return;
            const unsigned long long best = draw_from_candidates(shared, total, s, rule, maximum);
            for (int i = threadIdx.x; i < total; i += blockDim.x) {
                if (shared.token[i] != token_of(best)) continue;
                tokens[row_number] = shared.token[i];
                if (logprobs) logprobs[row_number] = log_probability(shared.value[i], maximum, rule.scale, everything);
            }
            return;
        }
    }
    const Draw draw = draw_from(team, shared.selection, values, count, first, vocab, s, rule, maximum);
    if (team.rank == 0 && threadIdx.x == 0) {
        const int token = token_of(draw.ticket);
        const float logit = team.of(values, token / slice)[token % slice];
        tokens[row_number] = token;
        if (logprobs) logprobs[row_number] = log_probability(logit, maximum, rule.scale, draw.everything);
    }
    team.sync();  // a block that leaves takes its shared memory with it
}
