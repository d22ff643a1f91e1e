// Race: two buffers, and one barrier too few.
//   Mistake   The next chunk is loaded into the other buffer while this one is used, and nobody waits between rounds.
//   Why       Two buffers let loading and using overlap by one round. They do not let one warp run two rounds ahead,
//             nor tell a reader that the prefetched chunk has arrived.
//   Fix       One barrier at the end of each round.
//
// expect: race
// launch: grid=1 block=64 args=x[4,64],y[64],chunks=4
// array: buffer
// block: 0
// result: y = x.flip(1).sum(0)

extern "C" __global__ void bad(const float* x, float* y, int chunks) {
    __shared__ float buffer[2][64];
    int t = threadIdx.x;
    float sum = 0.0f;
    buffer[0][t] = x[t];
    __syncthreads();
    for (int k = 0; k < chunks; k++) {
        if (k + 1 < chunks) buffer[(k + 1) % 2][t] = x[(k + 1) * 64 + t];  // <-- here
        sum += buffer[k % 2][63 - t];  // <-- here
    }
    y[t] = sum;
}

extern "C" __global__ void good(const float* x, float* y, int chunks) {
    __shared__ float buffer[2][64];
    int t = threadIdx.x;
    float sum = 0.0f;
    buffer[0][t] = x[t];
    __syncthreads();
    for (int k = 0; k < chunks; k++) {
        if (k + 1 < chunks) buffer[(k + 1) % 2][t] = x[(k + 1) * 64 + t];
        sum += buffer[k % 2][63 - t];
        __syncthreads();
    }
    y[t] = sum;
}
