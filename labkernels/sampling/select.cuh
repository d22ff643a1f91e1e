// Thresholds without sorting: which logit is the k-th largest, and above which one lies a mass of p, by a radix search over the bits of a float.
//
// Floats as ordered unsigned numbers have 32 bits. A histogram of the upper 11 says in which of 2048 bins the threshold lies; a second one,
// of the next 11 bits of what fell into that bin, in which part of it; the last 10 bits tell it exactly. What is added up in a bin is a
// number of tokens or their mass: whole numbers, so that the order of the additions does not matter.
//
// A Team is who works on a row: the threads of a block, or (v3_cluster.cu) those of several blocks, each with its part of the row.
#pragma once
#include "block.cuh"
#include "draw.cuh"

using Amount = unsigned long long;

constexpr int BINS = 2048, MOST_BLOCKS = 8;

struct BlockTeam {
    int rank = 0, size = 1;
    __device__ void sync() const { __syncthreads(); }
    template <class P>
    __device__ P* of(P* pointer, int) const { return pointer; }
};

struct Selection {  // in shared memory
    unsigned low[BINS], high[BINS];  // a sum of 64 bits in two words: shared memory adds 32 bits in one instruction
    Amount segment[MOST_BLOCKS], of_warp[32], above;
    int bin;
};

struct CountTokens {
    __device__ Amount operator()(float) const { return 1; }
};
struct CountMass {
    float maximum, scale;
    __device__ Amount operator()(float logit) const { return mass(weight(logit, maximum, scale)); }
};

__device__ inline Amount block_sum(Amount value) {
    return block_reduce(value, static_cast<Amount>(0), [](Amount a, Amount b) { return a + b; });
}
__device__ inline Amount block_max(Amount value) {
    return block_reduce(value, static_cast<Amount>(0), [](Amount a, Amount b) { return a > b ? a : b; });
}

// The sum of the values of all threads before this one; of_warp is 32 long.
__device__ inline Amount block_sum_before(Amount value, Amount* of_warp) {
    Amount sum = value;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const Amount other = __shfl_up_sync(FULL_WARP, sum, distance);
        if (lane_id() >= distance) sum += other;
    }
    __syncthreads();
    if (lane_id() == 31) of_warp[warp_id()] = sum;
    __syncthreads();
    for (int warp = 0; warp < warp_id(); ++warp) sum += of_warp[warp];
    return sum - value;
}

// What all blocks of the team have together. For all threads of all blocks.
template <class Team>
__device__ Amount team_sum(const Team& team, Selection& shared, Amount value) {
    value = block_sum(value);
    if (threadIdx.x < team.size) *team.of(&shared.segment[team.rank], threadIdx.x) = value;
    team.sync();
    Amount sum = 0;
    for (int rank = 0; rank < team.size; ++rank) sum += shared.segment[rank];
    team.sync();  // everyone has read
    return sum;
}

__device__ inline void add_to_bin(Selection& shared, unsigned bin, Amount amount) {
    const unsigned low = static_cast<unsigned>(amount);
    const unsigned before = low ? atomicAdd(&shared.low[bin], low) : 0;
    const unsigned high = static_cast<unsigned>(amount >> 32) + (before + low < before);
    if (high) atomicAdd(&shared.high[bin], high);
}

template <class Team>
__device__ Amount bin_of_team(const Team& team, Selection& shared, int bin) {
    Amount sum = 0;
#pragma unroll 1
    for (int rank = 0; rank < team.size; ++rank) {
        sum += (static_cast<Amount>(*team.of(&shared.high[bin], rank)) << 32) + *team.of(&shared.low[bin], rank);
    }
    return sum;
}

// The largest key for which all logits of this key or a larger one have `wanted` together; `lowest` where all from `lowest` on have less.
// values[0] .. values[count - 1] is this block's part. For all threads of all blocks of the team.
template <class Team, class Values, class Counted>
__device__ unsigned select_key(const Team& team, Selection& shared, const Values& values, int count, Counted counted, unsigned lowest, Amount wanted) {
    unsigned prefix = 0;
    Amount above = 0;  // of what has a larger prefix
    for (int level = 0; level < 3; ++level) {
        const int shift = level == 0 ? 21 : level == 1 ? 10 : 0, bins = level < 2 ? 2048 : 1024;
        for (int bin = threadIdx.x; bin < bins; bin += blockDim.x) shared.low[bin] = shared.high[bin] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < count; i += blockDim.x) {
            const float value = values[i];
            const unsigned key = ordered(value), part = key >> shift;
            if (key >= lowest && (level == 0 || part / bins == prefix)) add_to_bin(shared, part % bins, counted(value));
        }
        team.sync();

        const int segment = bins / team.size, each = (segment + blockDim.x - 1) / blockDim.x;  // bins of a block and of a thread, largest first
        const int first = min(static_cast<int>(threadIdx.x) * each, segment), last = min(first + each, segment);
        const int largest = bins - 1 - team.rank * segment;
        Amount mine = 0;
        for (int i = first; i < last; ++i) mine += bin_of_team(team, shared, largest - i);
        Amount sum = block_sum_before(mine, shared.of_warp);
        const Amount of_block = block_sum(mine);
        if (threadIdx.x < team.size) *team.of(&shared.segment[team.rank], threadIdx.x) = of_block;
        team.sync();

        Amount everything = above;
        sum += above;
        for (int rank = 0; rank < team.size; ++rank) {
            everything += shared.segment[rank];
            if (rank < team.rank) sum += shared.segment[rank];
        }
        if (everything < wanted) {
            team.sync();  // everyone has read
            return lowest;
        }
        if (sum < wanted && wanted <= sum + mine) {  // one thread of the team
            for (int i = first; i < last; ++i) {
                const Amount next = sum + bin_of_team(team, shared, largest - i);
                if (next >= wanted) {
                    for (int rank = 0; rank < team.size; ++rank) {
                        *team.of(&shared.bin, rank) = largest - i;
                        *team.of(&shared.above, rank) = sum;
                    }
                    break;
                }
                sum = next;
            }
        }
        team.sync();
        prefix = prefix * bins + shared.bin;
        above = shared.above;
    }
    return prefix;
}

// The draw from a row whose maximum is known, whatever its settings: the ticket of the drawn token, and the mass of the whole row if that is
// wanted, in all threads. values[i] is the logit of token first + i, where first is a multiple of 4.
struct Draw {
    unsigned long long ticket;
    Amount everything;
};

template <class Team, class Values>
__device__ Draw draw_from(const Team& team, Selection& shared, const Values& values, int count, int first, int vocab, const Settings& s,
                          const Rule& rule, float maximum, bool with_everything) {
    const CountMass counted = {maximum, rule.scale};
    unsigned lowest = LOWEST_FINITE;
    if (rule.keep < vocab) lowest = select_key(team, shared, values, count, CountTokens(), lowest, rule.keep);

    Amount total = 0, everything = 0;
    if (rule.top_p < 1.0f || with_everything) {
#pragma unroll 1
        for (int i = threadIdx.x; i < count; i += blockDim.x) {
            const float value = values[i];
            const Amount amount = counted(value);
            everything += amount;
            if (ordered(value) >= lowest) total += amount;
        }
    }
    if (with_everything) everything = team_sum(team, shared, everything);
    if (rule.top_p < 1.0f) {
        total = team_sum(team, shared, total);
        lowest = select_key(team, shared, values, count, counted, lowest, mass_wanted(rule.top_p, total));
    }

    unsigned long long best = 0;
#pragma unroll 1
    for (int i = 4 * threadIdx.x; i < count; i += 4 * blockDim.x) {  // four tokens have their noise from one counter
        const uint4 words = rule.greedy ? uint4{} : random_words(s, first + i);
#pragma unroll 1
        for (int j = 0; j < 4 && i + j < count; ++j) {
            const float value = values[i + j];
            if (ordered(value) < lowest || rule.below_min_p(weight(value, maximum, rule.scale))) continue;
            const unsigned long long mine = ticket(score(value, maximum, rule, word_of(words, j)), first + i + j);
            best = mine > best ? mine : best;
        }
    }
    best = block_max(best);
    if (threadIdx.x < team.size) *team.of(&shared.segment[team.rank], threadIdx.x) = best;
    team.sync();
    for (int rank = 0; rank < team.size; ++rank) best = shared.segment[rank] > best ? shared.segment[rank] : best;
    return {best, everything};
}

__device__ inline float log_probability(float logit, float maximum, float scale, Amount everything) {
    return (logit - maximum) * scale - logf(static_cast<float>(everything) / MASS_UNITS);
}

// A bit for each token: has it been before? For all threads; `bits` has a word for each 32 tokens from `first` on.
__device__ inline void mark_previous(unsigned* bits, const long long* previous, int previous_count, long long first, int count) {
    for (int word = threadIdx.x; word < (count + 31) / 32; word += blockDim.x) bits[word] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < previous_count; i += blockDim.x) {
        const long long token = previous[i] - first;
        if (token >= 0 && token < count) atomicOr(&bits[token / 32], 1u << token % 32);
    }
    __syncthreads();
}
