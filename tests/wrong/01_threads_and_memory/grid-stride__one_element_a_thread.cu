// reason: not_written
int i = blockIdx.x * blockDim.x + threadIdx.x;
if (i < n) out[i] = a * x[i] + y[i];
