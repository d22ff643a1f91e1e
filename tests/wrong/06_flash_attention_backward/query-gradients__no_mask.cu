// reason: mismatch
for (int i = threadIdx.x; i < KEYS * HEAD_DIM; i += QUERIES) {
    const int j = i / HEAD_DIM, d = i % HEAD_DIM;
    const bool inside = first + j < tokens;
    k_tile[j][d] = inside ? k[(head + first + j) * HEAD_DIM + d] : 0.0f;
    v_tile[j][d] = inside ? v[(head + first + j) * HEAD_DIM + d] : 0.0f;
}
__syncthreads();
for (int j = 0; j < KEYS; ++j) {
    float score = 0.0f, dp = 0.0f;
    for (int d = 0; d < HEAD_DIM; ++d) {
        score += q_row[d] * k_tile[j][d];
        dp += grad_row[d] * v_tile[j][d];
    }
    const bool visible = true;
    const float p = visible ? __expf(scale * score - own_lse) : 0.0f;
    const float ds = p * (dp - own_delta);
    for (int d = 0; d < HEAD_DIM; ++d) dq_row[d] += scale * ds * k_tile[j][d];
}
__syncthreads();
