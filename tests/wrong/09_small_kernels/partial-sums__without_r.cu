// reason: mismatch
float sum = 0.0f;
for (int row = blockIdx.x; row < rows; row += gridDim.x) sum += dy[row * cols + col] * x[row * cols + col];
partial[blockIdx.x * cols + col] = sum;
