// reason: sanitizer race
for (int distance = THREADS / 2; distance > 0; distance /= 2) {
    if (t < distance) value[t] += value[t + distance];
    __syncthreads();
}
