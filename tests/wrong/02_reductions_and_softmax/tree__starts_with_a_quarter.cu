// reason: mismatch
__syncthreads();
for (int distance = THREADS / 4; distance > 0; distance /= 2) {
    if (t < distance) value[t] += value[t + distance];
    __syncthreads();
}
