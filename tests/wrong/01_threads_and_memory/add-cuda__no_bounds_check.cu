// reason: sanitizer out_of_bounds
int i = blockIdx.x * blockDim.x + threadIdx.x;
out[i] = x[i] + y[i];
