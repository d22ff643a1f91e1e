// reason: not_finite
float max = 0.0f;
for (int col = lane_id(); col < cols; col += 32) max = fmaxf(max, x[col]);
max = warp_max(max);

float sum = 0.0f;
for (int col = lane_id(); col < cols; col += 32) sum += __expf(x[col] - max);
sum = warp_sum(sum);

for (int col = lane_id(); col < cols; col += 32) y[col] = __expf(x[col] - max) / sum;
