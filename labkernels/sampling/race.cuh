// A draw without thresholds: who wins among all tokens is drawn first, and then asked whether it belongs to the nucleus.
//
// A token's score is the largest where E / weight is the smallest, with E = -log(1 - v) of its random v: tokens race, and E / weight is when one
// arrives. E is v or a little more, so v / weight, which takes no logarithm, tells who can be first; only of these are scores worked out.
//
// The first of all tokens that belongs to the nucleus is the first of the nucleus. It belongs to it if the tokens with larger logits have less than
// top_p of the mass; if not, neither does any token with a logit as small, and the rest runs again, with the same noise.
#pragma once
#include "look_again.cuh"

constexpr int MOST_RACES = 6;     // then the threshold is searched for, after all
constexpr float MARGIN = 1.001f;  // on E / weight: what rounding the score may change

constexpr unsigned SAME_WORD = 1u << 31;  // where greedy: the largest logit arrives first, of equal ones the lowest token

struct Race {  // of each block of the cluster
    Amount total[MOST_BLOCKS], winner[MOST_BLOCKS], above[MOST_BLOCKS];
    float earliest[MOST_BLOCKS], logit[MOST_BLOCKS];
};

__device__ inline float v_of(unsigned word) { return fminf(__fmaf_rn(static_cast<float>(word), 0x1p-32f, 0x1p-33f), 1.0f - 0x1p-24f); }

// The four tokens that share their random words; what lies beyond `count` is -inf.
template <int WIDTH, class Row>
__device__ inline void load_group(const Row& row, int i, int count, float (&values)[4]) {
    if constexpr (WIDTH >= 4) {
        row.template load<4>(i, values);
    } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) values[j] = i + j < count ? row[i + j] : -CUDART_INF_F;
    }
}

template <int WIDTH, class Row>
struct Grouped {  // as visit_again reads it
    const Row& row;
    int count;
    template <int>
    __device__ void load(int i, float (&values)[4]) const { load_group<WIDTH>(row, i, count, values); }
};

// The draw from a row whose maximum is known, whatever its settings. For all threads of the cluster.
template <int WIDTH, class Row>
__device__ inline Draw draw_by_race(Race& race, Selection& selection, const ClusterTeam& team, const Row& row, int count, int first, int vocab,
                                    const Settings& s, const Rule& rule, float maximum, bool with_everything) {
    const CountMass counted = {maximum, rule.scale};
    unsigned lowest = LOWEST_FINITE;
    Amount everything = 0, wanted = 0;
    if (rule.keep < vocab) {
        if (with_everything) {
            for (int i = threadIdx.x; i < count; i += blockDim.x) everything += counted(row[i]);
            everything = team_sum(team, selection, everything);
        }
        lowest = select_key(team, selection, row, count, CountTokens(), lowest, rule.keep);
    }

    // When a token arrives, at the earliest; infinity if it does not take part.
    const auto arrival = [&](float value, float weight, unsigned word) {
        const bool takes_part = ordered(value) >= lowest && !rule.below_min_p(weight);
        return takes_part ? __fdividef(v_of(word), weight) : CUDART_INF_F;
    };
    const auto random = [&](int i) { return rule.greedy ? uint4{SAME_WORD, SAME_WORD, SAME_WORD, SAME_WORD} : random_words(s, first + i); };
    for (int round = 0;; ++round) {
        const bool counts = round == 0 && (rule.top_p < 1.0f || with_everything);
        float earliest = CUDART_INF_F;
        Amount total = 0;
#pragma unroll 1
        for (int i = 4 * threadIdx.x; i < count; i += 4 * blockDim.x) {
            float values[4];
            load_group<WIDTH>(row, i, count, values);
            const uint4 words = random(i);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float value = values[j], e = weight(value, maximum, rule.scale);
                if (counts && ordered(value) >= lowest) total += mass(e);
                earliest = fminf(earliest, arrival(value, e, j == 0 ? words.x : j == 1 ? words.y : j == 2 ? words.z : words.w));
            }
        }
        const float of_all = -block_max(-earliest);
        if (counts) total = block_sum(total);
        if (threadIdx.x < team.size) {
            Race& other = *team.of(&race, threadIdx.x);
            other.earliest[team.rank] = of_all;
            if (counts) other.total[team.rank] = total;
        }
        team.sync();
        float latest = CUDART_INF_F;
        for (int rank = 0; rank < team.size; ++rank) latest = fminf(latest, race.earliest[rank]);
        const float v = fminf(latest, 1.0f - 0x1p-24f);  // at least that of the earliest token, whose weight is at most 1
        latest *= -log1pf(-v) / v * MARGIN;
        if (counts) {
            total = 0;
            for (int rank = 0; rank < team.size; ++rank) total += race.total[rank];
            wanted = mass_wanted(rule.top_p, total);
            if (rule.keep >= vocab) everything = total;
        }

        Amount best = 0;
        float of_best = 0.0f;
        visit_again<4>(Grouped<WIDTH, Row>{row, count}, count, earliest <= latest, [&](const float(&values)[4], int i) {
            const uint4 words = random(i);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float value = values[j];
                const unsigned word = j == 0 ? words.x : j == 1 ? words.y : j == 2 ? words.z : words.w;
                if (!(arrival(value, weight(value, maximum, rule.scale), word) <= latest)) continue;
                const Amount mine = ticket(score(value, maximum, rule, word), first + i + j);
                if (mine > best) best = mine, of_best = value;
            }
        });
        const Amount of_block = block_max(best);
        if (best == of_block && (best || threadIdx.x == 0)) {
            for (int rank = 0; rank < team.size; ++rank) team.of(&race, rank)->winner[team.rank] = of_block, team.of(&race, rank)->logit[team.rank] = of_best;
        }
        team.sync();
        best = 0;
        float logit = 0.0f;
        for (int rank = 0; rank < team.size; ++rank) {
            if (race.winner[rank] > best) best = race.winner[rank], logit = race.logit[rank];
        }
        if (rule.top_p >= 1.0f || round > MOST_RACES) return {best, everything};

        const unsigned key = ordered(logit);
        Amount above = 0;
#pragma unroll 4
        for (int i = 4 * threadIdx.x; i < count; i += 4 * blockDim.x) {
            float values[4];
            load_group<WIDTH>(row, i, count, values);
#pragma unroll
            for (int j = 0; j < 4; ++j) above += ordered(values[j]) > key ? counted(values[j]) : 0;
        }
        above = block_sum(above);
        if (threadIdx.x < team.size) team.of(&race, threadIdx.x)->above[team.rank] = above;
        team.sync();
        above = 0;
        for (int rank = 0; rank < team.size; ++rank) above += race.above[rank];
        if (above < wanted) return {best, everything};
        lowest = round < MOST_RACES ? key + 1 : select_key(team, selection, row, count, counted, lowest, wanted);
    }
}
