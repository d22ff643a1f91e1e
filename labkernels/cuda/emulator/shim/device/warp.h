// Warp-wide intrinsics: shuffles, votes, matches and reductions. Each lane hands in what it has; the last one to arrive
// computes the results of all (lk::collective).
#pragma once
#include "bits.h"

namespace lk {

constexpr unsigned kFullMask = 0xffffffffu;

enum class Shuffle { index, up, down, exclusive_or };

// The lane that `lane` reads from, as PTX defines shfl: a lane outside the segment of `width` lanes means one's own.
inline unsigned shuffle_source(Shuffle kind, unsigned lane, unsigned argument, unsigned width) {
    const unsigned first = lane & ~(width - 1), last = first + width - 1;
    argument &= 31;
    switch (kind) {
        case Shuffle::index: return first | (argument & (width - 1));
        case Shuffle::up: return lane >= first + argument ? lane - argument : lane;
        case Shuffle::down: return lane + argument <= last ? lane + argument : lane;
        default: return (lane ^ argument) <= last ? lane ^ argument : lane;
    }
}

template <class T> struct ShuffleLane {
    T value, result;
    Shuffle kind;
    unsigned argument, width;
    bool undefined;
};

// A lane that takes no part gives an undefined value on a GPU. It is made conspicuous here (NaN, -1), and reported.
template <class T> __attribute__((no_sanitize("thread"))) void run_shuffle(unsigned, void** lanes) {
    for (unsigned lane = 0; lane < 32; ++lane) {
        auto* own = static_cast<ShuffleLane<T>*>(lanes[lane]);
        if (!own) continue;
        const void* other = lanes[shuffle_source(own->kind, lane, own->argument, own->width)];
        if (other) std::memcpy(static_cast<void*>(&own->result), &static_cast<const ShuffleLane<T>*>(other)->value, sizeof(T));
        else std::memset(static_cast<void*>(&own->result), 0xff, sizeof(T));
        own->undefined = !other;
    }
}

template <class T> LK_DEVICE T shuffle(Shuffle kind, unsigned mask, T value, unsigned argument, int width, const char* what) {
    if (width < 1 || width > 32 || (width & (width - 1))) fail("a shuffle's width must be 1, 2, 4, 8, 16 or 32");
    ShuffleLane<T> own{value, value, kind, argument, static_cast<unsigned>(width), false};
    collective(mask, &own, run_shuffle<T>, what);
    if (own.undefined) undefined_lane(what, shuffle_source(kind, lane(), argument, own.width));
    return own.result;
}

// A vote or a match: `result` holds the lanes that said yes, or the same; `members` those that took part, which are
// the lanes of the mask that have not left the kernel.
template <class T> struct VoteLane {
    T value;
    unsigned result, members;
};

__attribute__((no_sanitize("thread"))) inline void run_ballot(unsigned members, void** lanes) {
    unsigned result = 0;
    for (unsigned i = 0; i < 32; ++i)
        if (lanes[i] && static_cast<VoteLane<bool>*>(lanes[i])->value) result |= 1u << i;
    for (unsigned i = 0; i < 32; ++i) {
        if (!lanes[i]) continue;
        static_cast<VoteLane<bool>*>(lanes[i])->result = result;
        static_cast<VoteLane<bool>*>(lanes[i])->members = members;
    }
}

template <class T> __attribute__((no_sanitize("thread"))) void run_match(unsigned members, void** lanes) {
    for (unsigned i = 0; i < 32; ++i) {
        auto* own = static_cast<VoteLane<T>*>(lanes[i]);
        if (!own) continue;
        own->result = 0;
        own->members = members;
        for (unsigned j = 0; j < 32; ++j)
            if (lanes[j] && std::memcmp(&static_cast<VoteLane<T>*>(lanes[j])->value, &own->value, sizeof(T)) == 0) own->result |= 1u << j;
    }
}

LK_DEVICE VoteLane<bool> vote(unsigned mask, bool predicate, const char* what) {
    VoteLane<bool> own{predicate, 0, 0};
    collective(mask, &own, run_ballot, what);
    return own;
}

template <class T> LK_DEVICE VoteLane<T> match(unsigned mask, T value, const char* what) {
    VoteLane<T> own{value, 0, 0};
    collective(mask, &own, run_match<T>, what);
    return own;
}

template <class T> struct ReduceLane {
    T value, result;
};

template <class T, class Operation> __attribute__((no_sanitize("thread"))) void run_reduce(unsigned mask, void** lanes) {
    const unsigned first = static_cast<unsigned>(__builtin_ctz(mask));
    T result = static_cast<ReduceLane<T>*>(lanes[first])->value;
    for (unsigned i = first + 1; i < 32; ++i)
        if (mask >> i & 1) result = Operation()(result, static_cast<ReduceLane<T>*>(lanes[i])->value);
    for (unsigned i = first; i < 32; ++i)
        if (mask >> i & 1) static_cast<ReduceLane<T>*>(lanes[i])->result = result;
}

template <class Operation, class T> LK_DEVICE T reduce(unsigned mask, T value, const char* what) {
    ReduceLane<T> lane{value, value};
    collective(mask, &lane, run_reduce<T, Operation>, what);
    return lane.result;
}

struct Add { template <class T> T operator()(T a, T b) const { return a + b; } };
struct Min { template <class T> T operator()(T a, T b) const { return a < b ? a : b; } };
struct Max { template <class T> T operator()(T a, T b) const { return a > b ? a : b; } };
struct And { template <class T> T operator()(T a, T b) const { return a & b; } };
struct Or { template <class T> T operator()(T a, T b) const { return a | b; } };
struct Xor { template <class T> T operator()(T a, T b) const { return a ^ b; } };

}  // namespace lk

#define LK_SHUFFLES(T) \
    LK_DEVICE T __shfl_sync(unsigned mask, T value, int source, int width = 32) { \
        return lk::shuffle(lk::Shuffle::index, mask, value, static_cast<unsigned>(source), width, "__shfl_sync"); \
    } \
    LK_DEVICE T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) { \
        return lk::shuffle(lk::Shuffle::up, mask, value, delta, width, "__shfl_up_sync"); \
    } \
    LK_DEVICE T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) { \
        return lk::shuffle(lk::Shuffle::down, mask, value, delta, width, "__shfl_down_sync"); \
    } \
    LK_DEVICE T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) { \
        return lk::shuffle(lk::Shuffle::exclusive_or, mask, value, static_cast<unsigned>(lane_mask), width, "__shfl_xor_sync"); \
    }
LK_SHUFFLES(int) LK_SHUFFLES(unsigned) LK_SHUFFLES(long) LK_SHUFFLES(unsigned long)
LK_SHUFFLES(long long) LK_SHUFFLES(unsigned long long) LK_SHUFFLES(float) LK_SHUFFLES(double)
LK_SHUFFLES(__half) LK_SHUFFLES(__half2) LK_SHUFFLES(__nv_bfloat16) LK_SHUFFLES(__nv_bfloat162)
#undef LK_SHUFFLES

LK_DEVICE unsigned __activemask() { return lk::active_mask(); }
LK_DEVICE unsigned __ballot_sync(unsigned mask, int predicate) { return lk::vote(mask, predicate != 0, "__ballot_sync").result; }
LK_DEVICE int __any_sync(unsigned mask, int predicate) { return lk::vote(mask, predicate != 0, "__any_sync").result != 0; }
LK_DEVICE int __all_sync(unsigned mask, int predicate) {
    const auto vote = lk::vote(mask, predicate != 0, "__all_sync");
    return vote.result == vote.members;
}
LK_DEVICE int __uni_sync(unsigned mask, int predicate) {
    const auto vote = lk::vote(mask, predicate != 0, "__uni_sync");
    return vote.result == 0 || vote.result == vote.members;
}

// Values are compared bit by bit, floats too.
#define LK_MATCHES(T) \
    LK_DEVICE unsigned __match_any_sync(unsigned mask, T value) { return lk::match(mask, value, "__match_any_sync").result; } \
    LK_DEVICE unsigned __match_all_sync(unsigned mask, T value, int* equal) { \
        const auto match = lk::match(mask, value, "__match_all_sync"); \
        *equal = match.result == match.members; \
        return *equal ? mask : 0; \
    }
LK_MATCHES(int) LK_MATCHES(unsigned) LK_MATCHES(long) LK_MATCHES(unsigned long)
LK_MATCHES(long long) LK_MATCHES(unsigned long long) LK_MATCHES(float) LK_MATCHES(double)
#undef LK_MATCHES

LK_DEVICE unsigned __reduce_add_sync(unsigned mask, unsigned value) { return lk::reduce<lk::Add>(mask, value, "__reduce_add_sync"); }
LK_DEVICE int __reduce_add_sync(unsigned mask, int value) {
    return static_cast<int>(lk::reduce<lk::Add>(mask, static_cast<unsigned>(value), "__reduce_add_sync"));
}
LK_DEVICE unsigned __reduce_min_sync(unsigned mask, unsigned value) { return lk::reduce<lk::Min>(mask, value, "__reduce_min_sync"); }
LK_DEVICE int __reduce_min_sync(unsigned mask, int value) { return lk::reduce<lk::Min>(mask, value, "__reduce_min_sync"); }
LK_DEVICE unsigned __reduce_max_sync(unsigned mask, unsigned value) { return lk::reduce<lk::Max>(mask, value, "__reduce_max_sync"); }
LK_DEVICE int __reduce_max_sync(unsigned mask, int value) { return lk::reduce<lk::Max>(mask, value, "__reduce_max_sync"); }
LK_DEVICE unsigned __reduce_and_sync(unsigned mask, unsigned value) { return lk::reduce<lk::And>(mask, value, "__reduce_and_sync"); }
LK_DEVICE unsigned __reduce_or_sync(unsigned mask, unsigned value) { return lk::reduce<lk::Or>(mask, value, "__reduce_or_sync"); }
LK_DEVICE unsigned __reduce_xor_sync(unsigned mask, unsigned value) { return lk::reduce<lk::Xor>(mask, value, "__reduce_xor_sync"); }
