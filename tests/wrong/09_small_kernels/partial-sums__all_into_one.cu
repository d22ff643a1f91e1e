// reason: sanitizer race
float sum = 0.0f;
for (int row = blockIdx.x; row < rows; row += gridDim.x) sum += dy[row * cols + col] * x[row * cols + col] * r[row];
partial[col] = sum;
