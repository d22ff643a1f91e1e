// reason: mismatch
int each = (cols + 31) / 32, first = lane_id() * each, last = min(first + each, cols);      // right, and neighbouring lanes are far apart
float max = -CUDART_INF_F;
for (int col = first; col < last; ++col) max = fmaxf(max, x[col]);
max = warp_max(max);
float sum = 0.0f;
for (int col = first; col < last; ++col) sum += __expf(x[col] - max);
sum = warp_sum(sum);
for (int col = first; col < last; ++col) y[col] = __expf(x[col] - max) / sum;
