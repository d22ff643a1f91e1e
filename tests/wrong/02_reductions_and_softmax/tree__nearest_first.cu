// reason: mismatch
__syncthreads();
for (int distance = 1; distance < THREADS; distance *= 2) {
    if (t % (2 * distance) == 0) value[t] += value[t + distance];      // right, and every warp is busy in five steps
    __syncthreads();
}
