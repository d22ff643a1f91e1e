// reason: mismatch
float max = -CUDART_INF_F, sum = 0.0f;
for (int col = 0; col < cols; ++col) max = fmaxf(max, x[col]);      // right, and one float a request
for (int col = 0; col < cols; ++col) sum += __expf(x[col] - max);
for (int col = lane_id(); col < cols; col += 32) y[col] = __expf(x[col] - max) / sum;
