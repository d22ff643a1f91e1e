// reason: mismatch
const int row = blockIdx.x;
partial[blockIdx.x * cols + col] = dy[row * cols + col] * x[row * cols + col] * r[row];
