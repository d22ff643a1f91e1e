// reason: mismatch
__syncthreads();
int count = min(THREADS, n - (int)blockIdx.x * THREADS);
for (int distance = count / 2; distance > 0; distance /= 2) {    // 33 / 2 is 16: the last one is forgotten
    if (t < distance) value[t] += value[t + distance];
    __syncthreads();
}
