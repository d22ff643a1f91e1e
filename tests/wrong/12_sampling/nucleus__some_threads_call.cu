// reason: sanitizer barrier_divergence
const float tried = __int_as_float(threshold | bit);
float sum = 0.0f;
for (int i = threadIdx.x; i < vocab; i += 128) sum += p[i] >= tried ? p[i] : 0.0f;
if (threadIdx.x < vocab && block_sum(sum) >= top_p) threshold |= bit;
