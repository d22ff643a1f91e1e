// reason: mismatch
const float top = fmaxf(m, score), correction = __expf(m - top), p = __expf(score - top);
m = top;
s = s * correction + p;
out0 += p * v0;
out1 += p * v1;
