// reason: sanitizer out_of_bounds
const int own = first + threadIdx.x;
float sum = 0.0f;
{
    for (int k = 0; k < embed; ++k) sum += x[k] * w1[own * embed + k];
    sum = gelu(sum + b1[own]);
}
hidden[threadIdx.x] = sum;
__syncthreads();
for (int col = threadIdx.x; col < embed; col += slice) {
    float share = 0.0f;
    for (int i = 0; i < min(slice, ffn - first); ++i) share += hidden[i] * w2[col * ffn + first + i];
    shares[blockIdx.x * embed + col] = share;
}
