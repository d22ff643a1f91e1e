// reason: not_finite
float max = -CUDART_INF_F;
for (int key = lane_id(); key < length; key += 32) max = fmaxf(max, scores[key]);
max = warp_max(max);

float sum = 0.0f;
for (int key = lane_id(); key < length; key += 32) sum += __expf(scores[key] - max);
sum = warp_sum(sum);

const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
for (int key = lane_id(); key < kv_len; key += 32) scores[key] = key < length ? __expf(scores[key] - max) * factor : 0.0f;
