// reason: mismatch
if (i < n) value[t] = *(const volatile float*)&x[i];      // right, and every byte moves twice
__syncthreads();
for (int distance = THREADS / 2; distance > 0; distance /= 2) {
    if (t < distance) value[t] += value[t + distance];
    __syncthreads();
}
