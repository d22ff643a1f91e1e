// reason: mismatch
__syncthreads();
if (t == 0) for (int k = 1; k < THREADS; ++k) value[0] += value[k];      // right, and 31 lanes watch
