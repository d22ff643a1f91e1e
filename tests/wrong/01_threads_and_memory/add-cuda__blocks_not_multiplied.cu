// reason: sanitizer race
int i = blockIdx.x + threadIdx.x;
if (i < n) out[i] = x[i] + y[i];
