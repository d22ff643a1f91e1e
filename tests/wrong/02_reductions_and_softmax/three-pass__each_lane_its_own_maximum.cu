// reason: mismatch
float max = -CUDART_INF_F;
for (int col = lane_id(); col < cols; col += 32) max = fmaxf(max, x[col]);
float sum = 0.0f;
for (int col = lane_id(); col < cols; col += 32) sum += __expf(x[col] - max);
sum = warp_sum(sum);
for (int col = lane_id(); col < cols; col += 32) y[col] = __expf(x[col] - max) / sum;
