// reason: mismatch
float max = -CUDART_INF_F;
for (int col = lane_id(); col < cols; col += 32) max = fmaxf(max, x[col]);
max = warp_max(max);
for (int col = lane_id(); col < cols; col += 32) y[col] = __expf(x[col] - max);
