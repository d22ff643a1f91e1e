// reason: sanitizer barrier_divergence
__syncthreads();
for (int distance = THREADS / 2; distance > 0; distance /= 2) {
    if (t >= distance) break;
    value[t] += value[t + distance];
    __syncthreads();
}
