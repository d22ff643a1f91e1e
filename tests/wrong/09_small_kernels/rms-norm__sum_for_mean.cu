// reason: mismatch
float sum = 0.0f;
#pragma unroll
for (int i = 0; i < 32; ++i) {
    const int col = 32 * i + lane;
    kept[i] = col < cols ? x[row * cols + col] : 0.0f;
    sum += kept[i] * kept[i];
}
for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(FULL, sum, distance);
const float r = rsqrtf(sum + eps);
#pragma unroll
for (int i = 0; i < 32; ++i) {
    const int col = 32 * i + lane;
    if (col < cols) y[row * cols + col] = kept[i] * r * weight[col];
}
