// Numbers of rows, as int32 or int64: whichever the caller has them in.
#pragma once

__device__ inline long long index_at(const void* index, bool wide, long long i) {
    return wide ? static_cast<const long long*>(index)[i] : static_cast<const int*>(index)[i];
}
