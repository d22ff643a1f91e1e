// reason: not_finite
float sum = 0.0f;
for (int col = lane_id(); col < cols; col += 32) sum += __expf(x[col]);
sum = warp_sum(sum);
for (int col = lane_id(); col < cols; col += 32) y[col] = __expf(x[col]) / sum;
