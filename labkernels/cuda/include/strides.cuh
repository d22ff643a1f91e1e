// How far apart a tensor's neighbours are along each axis of (batch, heads, seq, head_dim), in elements; head_dim's own stride is 1.
#pragma once

struct Strides {
    long long batch, head, seq;
};

// The first element of one head's (seq, head_dim) matrix.
template <class T>
__device__ T* head_matrix(T* tensor, Strides strides, int batch, int head) {
    return tensor + batch * strides.batch + head * strides.head;
}
