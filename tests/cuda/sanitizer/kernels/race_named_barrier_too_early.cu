// Race: two warps hand rows to two others over named barriers, and the row is given back before it is read.
//   Mistake   The consumers arrive at barrier 2, which says that the row may be filled again, and read it afterwards.
//   Why       An arrival speaks for what its thread has done before it, and named_barrier_arrive does not wait.
//   Fix       Read first, then arrive.
//
// expect: race
// launch: grid=1 block=128 args=x[4,64],y[4,64],rounds=4
// array: row
// block: 0
// result: y = x.flip(1)
#include "named_barrier.cuh"

extern "C" __global__ void bad(const float* x, float* y, int rounds) {
    __shared__ float row[64];
    int t = threadIdx.x % 64;
    for (int i = 0; i < rounds; i++) {
        if (threadIdx.x < 64) {
            if (i > 0) named_barrier_sync(2, 128);
            row[t] = x[64 * i + t];  // <-- here
            named_barrier_arrive(1, 128);
        } else {
            named_barrier_sync(1, 128);
            if (i + 1 < rounds) named_barrier_arrive(2, 128);
            y[64 * i + t] = row[63 - t];  // <-- here
        }
    }
}

extern "C" __global__ void good(const float* x, float* y, int rounds) {
    __shared__ float row[64];
    int t = threadIdx.x % 64;
    for (int i = 0; i < rounds; i++) {
        if (threadIdx.x < 64) {
            if (i > 0) named_barrier_sync(2, 128);
            row[t] = x[64 * i + t];
            named_barrier_arrive(1, 128);
        } else {
            named_barrier_sync(1, 128);
            y[64 * i + t] = row[63 - t];
            if (i + 1 < rounds) named_barrier_arrive(2, 128);
        }
    }
}
