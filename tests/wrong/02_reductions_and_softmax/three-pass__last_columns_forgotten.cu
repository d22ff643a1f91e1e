// reason: not_written
float max = -CUDART_INF_F;
for (int col = lane_id(); col < cols; col += 32) max = fmaxf(max, x[col]);
max = warp_max(max);
float sum = 0.0f;
for (int col = lane_id(); col < cols; col += 32) sum += __expf(x[col] - max);
sum = warp_sum(sum);
for (int step = 0; step < cols / 32; ++step) {      // rounded down
    int col = 32 * step + lane_id();
    y[col] = __expf(x[col] - max) / sum;
}
