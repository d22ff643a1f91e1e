// reason: sanitizer barrier_divergence
for (int distance = 16; distance > 0; distance /= 2) {
    if (threadIdx.x % 32 < distance) value += __shfl_xor_sync(0xffffffff, value, distance);
}
return value;
