# reason: exception IndexError
i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
out[i] = x[i] + y[i]
