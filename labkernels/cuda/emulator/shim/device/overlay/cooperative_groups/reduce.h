// cooperative_groups::reduce over a tile or a coalesced group.
#pragma once
#include "../cooperative_groups.h"

namespace cooperative_groups {

template <class T> struct plus { LK_DEVICE T operator()(T a, T b) const { return a + b; } };
template <class T> struct less { LK_DEVICE T operator()(T a, T b) const { return b < a ? b : a; } };
template <class T> struct greater { LK_DEVICE T operator()(T a, T b) const { return a < b ? b : a; } };
template <class T> struct bit_and { LK_DEVICE T operator()(T a, T b) const { return a & b; } };
template <class T> struct bit_or { LK_DEVICE T operator()(T a, T b) const { return a | b; } };
template <class T> struct bit_xor { LK_DEVICE T operator()(T a, T b) const { return a ^ b; } };

// The butterfly that a GPU runs: sums of floats come out the same.
template <unsigned Size, class Parent, class T, class Operation>
LK_DEVICE T reduce(const thread_block_tile<Size, Parent>& group, T value, Operation operation) {
    for (unsigned distance = Size / 2; distance; distance /= 2) value = operation(value, group.shfl_xor(value, distance));
    return value;
}

template <class T, class Operation> LK_DEVICE T reduce(const coalesced_group& group, T value, Operation operation) {
    T result = group.shfl(value, 0);
    for (unsigned rank = 1; rank < group.size(); ++rank) result = operation(result, group.shfl(value, static_cast<int>(rank)));
    return result;
}

}  // namespace cooperative_groups
