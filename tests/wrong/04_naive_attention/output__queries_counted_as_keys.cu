// reason: mismatch
const float* weight_row = weights + (z * seq_len + query) * kv_len;
const float* v_column = v + z / group * kv_len * head_dim + d;
float sum = 0.0f;
for (int key = 0; key < min(seq_len, kv_len); ++key) sum += weight_row[key] * v_column[key * head_dim];
output[(z * seq_len + query) * head_dim + d] = sum;
