// reason: not_written
int stride = gridDim.x * blockDim.x + 1;
for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) out[i] = a * x[i] + y[i];
