// reason: sanitizer out_of_bounds
int stride = gridDim.x * blockDim.x;
for (int i = blockIdx.x * blockDim.x + threadIdx.x; i <= n; i += stride) out[i] = a * x[i] + y[i];
