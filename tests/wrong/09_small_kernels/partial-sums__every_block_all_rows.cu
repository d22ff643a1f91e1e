// reason: mismatch
float sum = 0.0f;
for (int row = 0; row < rows; ++row) sum += dy[row * cols + col] * x[row * cols + col] * r[row];
partial[blockIdx.x * cols + col] = sum;
