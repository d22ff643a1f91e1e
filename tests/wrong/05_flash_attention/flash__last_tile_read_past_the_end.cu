// reason: sanitizer out_of_bounds
for (int i = threadIdx.x; i < KEYS * HEAD_DIM; i += QUERIES) {
    const int j = i / HEAD_DIM, d = i % HEAD_DIM;
    const bool inside = true;
    k_tile[j][d] = inside ? k[(first + j) * HEAD_DIM + d] : 0.0f;
    v_tile[j][d] = inside ? v[(first + j) * HEAD_DIM + d] : 0.0f;
}
__syncthreads();

float new_max = max;
for (int j = 0; j < KEYS; ++j) {
    score[j] = 0.0f;
    for (int d = 0; d < HEAD_DIM; ++d) score[j] += q_row[d] * k_tile[j][d];
    if (first + j >= visible) score[j] = -CUDART_INF_F;
    new_max = fmaxf(new_max, score[j]);
}
const float correction = __expf(max - new_max);
max = new_max;
sum *= correction;
for (int d = 0; d < HEAD_DIM; ++d) o[d] *= correction;

for (int j = 0; j < KEYS; ++j) {
    const float weight = __expf(score[j] - max);
    sum += weight;
    for (int d = 0; d < HEAD_DIM; ++d) o[d] += weight * v_tile[j][d];
}
__syncthreads();
