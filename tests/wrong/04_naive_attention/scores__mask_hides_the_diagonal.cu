// reason: not_finite
if (query >= seq_len || key >= kv_len) return;
const float* q_row = q + (z * seq_len + query) * head_dim;
const float* k_row = k + (z / group * kv_len + key) * head_dim;
float dot = 0.0f;
for (int d = 0; d < head_dim; ++d) dot += q_row[d] * k_row[d];
const bool visible = !causal || key < query + kv_len - seq_len;
scores[(z * seq_len + query) * kv_len + key] = visible ? scale * dot : -CUDART_INF_F;
