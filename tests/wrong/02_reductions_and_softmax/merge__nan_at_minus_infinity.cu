// reason: not_finite
float m = fmaxf(a.m, b.m);
return {m, a.s * __expf(a.m - m) + b.s * __expf(b.m - m)};    // exp(-inf - -inf)
