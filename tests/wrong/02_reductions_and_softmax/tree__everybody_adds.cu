// reason: sanitizer out_of_bounds
__syncthreads();
for (int distance = THREADS / 2; distance > 0; distance /= 2) {
    value[t] += value[t + distance];      // the upper half reads past the array
    __syncthreads();
}
