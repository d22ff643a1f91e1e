// reason: mismatch
%%cuda --name product_gated
// x (rows, depth), gate and up (cols, depth), y (rows, cols). Blocks of 16 x 16.
__global__ void product_gated(const float* x, const float* gate, const float* up, float* y, int rows, int cols, int depth) {
    __shared__ float x_tile[16][17], gate_tile[16][17], up_tile[16][17];
    const int row = blockIdx.y * 16 + threadIdx.y, col = blockIdx.x * 16 + threadIdx.x;
    float gate_sum = 0.0f, up_sum = 0.0f;
    for (int first = 0; first < depth; first += 16) {
        const int k = first + threadIdx.x, w_row = blockIdx.x * 16 + threadIdx.y;
        const bool inside = w_row < cols && k < depth;
        x_tile[threadIdx.y][threadIdx.x] = row < rows && k < depth ? x[row * depth + k] : 0.0f;
        gate_tile[threadIdx.y][threadIdx.x] = inside ? gate[w_row * depth + k] : 0.0f;
        up_tile[threadIdx.y][threadIdx.x] = inside ? up[w_row * depth + k] : 0.0f;
        __syncthreads();
        // BEGIN SOLUTION
        for (int i = 0; i < 16; ++i) {
            gate_sum += x_tile[threadIdx.y][i] * gate_tile[threadIdx.x][i];
            up_sum += x_tile[threadIdx.y][i] * gate_tile[threadIdx.x][i];
        }
        // END SOLUTION
        __syncthreads();
    }
    // BEGIN SOLUTION
    if (row < rows && col < cols) y[row * cols + col] = gate_sum / (1.0f + __expf(-gate_sum)) * up_sum;
    // END SOLUTION
}
