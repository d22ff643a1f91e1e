// reason: sanitizer race
int i = threadIdx.x;
if (i < n) out[i] = x[i] + y[i];
