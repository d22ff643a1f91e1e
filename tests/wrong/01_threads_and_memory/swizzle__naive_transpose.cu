// reason: mismatch
%%cuda --name swizzled
// No conflicts, as nothing goes through shared memory; but the stores are scattered.
__global__ void swizzled(const float* x, float* out, int rows, int cols) {
    int row = 32 * blockIdx.y + threadIdx.y, col = 32 * blockIdx.x + threadIdx.x;
    if (row < rows && col < cols) out[col * rows + row] = x[row * cols + col];
}
