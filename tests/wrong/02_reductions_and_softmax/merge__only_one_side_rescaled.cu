// reason: mismatch
float m = fmaxf(a.m, b.m);
if (m == -CUDART_INF_F) return {m, 0.0f};
return {m, a.s * __expf(a.m - m) + b.s};      // right only where b has the larger maximum
