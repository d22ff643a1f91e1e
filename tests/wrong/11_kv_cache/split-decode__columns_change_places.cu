// reason: mismatch
const float top = fmaxf(m, score), correction = __expf(m - top), p = __expf(score - top);
m = top;
s = s * correction + p;
out0 = out0 * correction + p * v1;
out1 = out1 * correction + p * v0;
