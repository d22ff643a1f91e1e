// reason: mismatch
__syncthreads();
for (int distance = 1; distance < THREADS; distance *= 2) {
    int k = 2 * distance * t;      // right, with bank conflicts
    if (k < THREADS) value[k] += value[k + distance];
    __syncthreads();
}
