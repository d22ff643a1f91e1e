// reason: not_finite
float m = fmaxf(a.m, b.m);
if (m == -CUDART_INF_F) return {m, 0.0f};
return {m, a.s * __expf(m - a.m) + b.s * __expf(m - b.m)};
