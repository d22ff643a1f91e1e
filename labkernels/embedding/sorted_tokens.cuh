// Where a token's places begin among all, once these are sorted.
#pragma once
#include "row_index.cuh"

// The first of n sorted tokens that is at least `token`.
__device__ inline int first_at_least(const void* sorted, bool wide, int n, long long token) {
    int low = 0, high = n;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (index_at(sorted, wide, middle) < token) low = middle + 1;
        else high = middle;
    }
    return low;
}
