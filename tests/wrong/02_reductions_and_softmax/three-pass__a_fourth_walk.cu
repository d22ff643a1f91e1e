// reason: mismatch
float max = -CUDART_INF_F;
for (int col = lane_id(); col < cols; col += 32) max = fmaxf(max, x[col]);
max = warp_max(max);
for (int col = lane_id(); col < cols; col += 32) y[col] = __expf(x[col] - max);      // right, but y goes to memory, comes back and goes again
float sum = 0.0f;
for (int col = lane_id(); col < cols; col += 32) sum += y[col];
sum = warp_sum(sum);
for (int col = lane_id(); col < cols; col += 32) y[col] /= sum;
