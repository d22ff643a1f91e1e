// reason: mismatch
%%cuda --name lookup
// As gemv, with w = scale * codebook[q]; codebook (16,).
__global__ void lookup(const unsigned* words, const float* scales, const float* codebook, const float* x, float* y, int k, int group) {
    __shared__ float table[16];
    const int row = blockIdx.x, lane = threadIdx.x;
    // BEGIN SOLUTION
    if (lane < 16) table[lane] = codebook[lane];
    __syncthreads();
    // END SOLUTION
    float sum = 0.0f;
    for (int at = lane; at < k / 8; at += 32) {
        const unsigned word = words[row * (k / 8) + at];
        const int first = 8 * at;
        const float scale = scales[row * (k / group) + first / group];
        // BEGIN SOLUTION
        for (int i = 0; i < 4; ++i) {
            const unsigned pair = (word >> 4 * i) & 0x000f000f;
            sum += scale * (table[pair & 15] * x[first + 2 * i] + table[pair & 15] * x[first + 2 * i + 1]);
        }
        // END SOLUTION
    }
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffff, sum, distance);
    if (lane == 0) y[row] = sum;
}
