# reason: not_written
i = cuda.threadIdx.x
if i < out.size:
    out[i] = x[i] + y[i]
