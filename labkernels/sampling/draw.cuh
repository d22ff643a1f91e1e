// What a draw is, for every version of `sample_tokens`: the row as it is read, the mass of a token, its noise.
//
//   mass     of a token is exp((logit - maximum) / temperature) in units of 2^-40, a whole number. Whole numbers add up to the same sum in
//            any order: all versions keep the same tokens, however many threads have counted.
//   noise    is Gumbel's, -log(-log(u)), with u from Philox4x32-10 of (seed, position, token). The token with the largest
//            (logit - maximum) / temperature + noise is drawn with exactly the probability that softmax gives it among those that take part,
//            and no running sum has to be inverted.
#pragma once
#include <math_constants.h>

#include "convert.cuh"

constexpr float MASS_UNITS = 1099511627776.0f;       // 2^40 in a token whose logit is the maximum
constexpr unsigned LOWEST_FINITE = 0x00800000u;  // ordered(-FLT_MAX): below it is -inf, which is never drawn

struct Settings {
    float temperature;  // 0: greedy
    int top_k;          // 0: all
    float top_p, min_p, penalty;
    unsigned long long seed, position;
};

// The settings of a row: each from its tensor, where there is one, else from `all`. A seed for all rows is that of the first, the next has
// the next one.
__device__ inline Settings settings_of(long long row, Settings all, const float* temperature, const int* top_k, const float* top_p,
                                       const float* min_p, const float* penalty, const long long* seed, const long long* position) {
    return {temperature ? temperature[row] : all.temperature, top_k ? top_k[row] : all.top_k,       top_p ? top_p[row] : all.top_p,
            min_p ? min_p[row] : all.min_p,                   penalty ? penalty[row] : all.penalty, seed ? static_cast<unsigned long long>(seed[row]) : all.seed + row,
            position ? static_cast<unsigned long long>(position[row]) : all.position};
}

// How many tokens top-k leaves in, and how the rest of a row's settings is used.
struct Rule {
    bool greedy;
    int keep;
    float scale, top_p, min_p;
    __device__ Rule(const Settings& s, int vocab)
        : greedy(!(s.temperature > 0.0f)),
          keep(!(s.temperature > 0.0f) ? 1 : s.top_k > 0 && s.top_k < vocab ? s.top_k : vocab),
          scale(s.temperature > 0.0f ? 1.0f / s.temperature : 1.0f),
          top_p(!(s.temperature > 0.0f) ? 1.0f : s.top_p),
          min_p(s.min_p) {}
    __device__ bool below_min_p(float weight) const { return weight < min_p && weight < 1.0f; }  // the maximum stays
};

// The logit of a token that has been before. -0 becomes 0, so that equal logits have equal bits.
__device__ inline float penalised(float logit, bool before, float penalty) {
    if (before) logit = logit < 0.0f ? logit * penalty : logit / penalty;
    return logit + 0.0f;
}

// Floats as unsigned numbers in the same order, and back.
__device__ inline unsigned ordered(float value) {
    const unsigned bits = __float_as_uint(value);
    return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}
__device__ inline float from_ordered(unsigned key) { return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu)); }

__device__ inline float weight(float logit, float maximum, float scale) { return expf((logit - maximum) * scale); }
__device__ inline unsigned long long mass(float weight) { return static_cast<unsigned long long>(weight * MASS_UNITS); }

// A token is within top-p when the mass of the larger ones is less than this.
__device__ inline unsigned long long mass_wanted(float top_p, unsigned long long total) {
    const double wanted = ceil(static_cast<double>(top_p) * static_cast<double>(total));
    return wanted < 1.0 ? 1 : static_cast<unsigned long long>(wanted);
}

// Philox4x32-10 (Salmon et al., SC 2011): four random words from a counter and a key, without any state.
__device__ inline uint4 philox(uint4 counter, unsigned long long seed) {
    unsigned key_x = static_cast<unsigned>(seed), key_y = static_cast<unsigned>(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned high_x = __umulhi(0xD2511F53u, counter.x), low_x = 0xD2511F53u * counter.x;
        const unsigned high_z = __umulhi(0xCD9E8D57u, counter.z), low_z = 0xCD9E8D57u * counter.z;
        counter = {high_z ^ counter.y ^ key_x, low_z, high_x ^ counter.w ^ key_y, low_x};
        key_x += 0x9E3779B9u;
        key_y += 0xBB67AE85u;
    }
    return counter;
}

// Four neighbouring tokens share a counter.
__device__ inline uint4 random_words(const Settings& s, int token) {
    return philox({static_cast<unsigned>(token) / 4, 0u, static_cast<unsigned>(s.position), static_cast<unsigned>(s.position >> 32)}, s.seed);
}
__device__ inline unsigned word_of(const uint4& words, int token) {
    const unsigned lower = token & 1 ? words.y : words.x, upper = token & 1 ? words.w : words.z;
    return token & 2 ? upper : lower;
}

// -log(-log(1 - v)) of v = (word + 1/2) / 2^32. What wins is a small v, and small floats have the finest steps.
__device__ inline float gumbel(unsigned word) {
    const float v = fminf(__fmaf_rn(static_cast<float>(word), 0x1p-32f, 0x1p-33f), 1.0f - 0x1p-24f);
    return -logf(-log1pf(-v));
}

// By what tokens are compared, the largest is drawn. Score first; of equal ones the lower token.
__device__ inline unsigned long long ticket(float score, int token) {
    return static_cast<unsigned long long>(ordered(score)) << 32 | (0xffffffffu - static_cast<unsigned>(token));
}
__device__ inline int token_of(unsigned long long ticket) { return static_cast<int>(0xffffffffu - static_cast<unsigned>(ticket)); }

// By which a token is drawn, from its random word.
__device__ inline float score(float logit, float maximum, const Rule& rule, unsigned word) {
    return rule.greedy ? logit - maximum : __fmaf_rn(logit - maximum, rule.scale, gumbel(word));
}
__device__ inline float score(float logit, float maximum, const Rule& rule, const Settings& s, int token) {
    return score(logit, maximum, rule, rule.greedy ? 0 : word_of(random_words(s, token), token));
}
