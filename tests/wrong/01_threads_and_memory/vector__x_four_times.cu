// reason: mismatch
for (int i = thread; i < n / 4; i += stride) {
    float4 u = x4[i], v = y4[i];
    out4[i] = {a * u.x + v.x, a * u.x + v.y, a * u.x + v.z, a * u.x + v.w};
}
for (int i = n / 4 * 4 + thread; i < n; i += stride) out[i] = a * x[i] + y[i];
