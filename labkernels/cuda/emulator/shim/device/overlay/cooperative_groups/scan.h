// cooperative_groups::inclusive_scan and exclusive_scan over a tile or a coalesced group.
#pragma once
#include "reduce.h"

namespace cooperative_groups {

template <class Group, class T, class Operation> LK_DEVICE T inclusive_scan(const Group& group, T value, Operation operation) {
    for (unsigned distance = 1; distance < group.size(); distance *= 2) {
        const T before = group.shfl_up(value, distance);
        if (group.thread_rank() >= distance) value = operation(before, value);
    }
    return value;
}
template <class Group, class T> LK_DEVICE T inclusive_scan(const Group& group, T value) { return inclusive_scan(group, value, plus<T>()); }

// The first thread gets T(), which is right for plus and undefined on a GPU for the rest.
template <class Group, class T, class Operation> LK_DEVICE T exclusive_scan(const Group& group, T value, Operation operation) {
    const T before = group.shfl_up(inclusive_scan(group, value, operation), 1);
    return group.thread_rank() == 0 ? T() : before;
}
template <class Group, class T> LK_DEVICE T exclusive_scan(const Group& group, T value) { return exclusive_scan(group, value, plus<T>()); }

}  // namespace cooperative_groups
