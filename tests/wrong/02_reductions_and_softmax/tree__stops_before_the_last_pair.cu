// reason: mismatch
__syncthreads();
for (int distance = THREADS / 2; distance > 1; distance /= 2) {
    if (t < distance) value[t] += value[t + distance];
    __syncthreads();
}
