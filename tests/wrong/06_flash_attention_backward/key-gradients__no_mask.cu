// reason: mismatch
float score = 0.0f, dp = 0.0f;
for (int d = 0; d < HEAD_DIM; ++d) {
    score += q_tile[i][d] * k_row[d];
    dp += grad_tile[i][d] * v_row[d];
}
const float p = __expf(scale * score - lse_tile[i]);
const float ds = p * (dp - delta_tile[i]);
for (int d = 0; d < HEAD_DIM; ++d) {
    dk_row[d] += scale * ds * q_tile[i][d];
    dv_row[d] += p * grad_tile[i][d];
}
