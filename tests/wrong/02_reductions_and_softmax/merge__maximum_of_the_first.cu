// reason: not_finite
float m = a.m;
return {m, a.s + b.s * __expf(b.m - m)};
