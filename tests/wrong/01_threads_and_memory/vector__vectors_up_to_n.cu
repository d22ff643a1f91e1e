// reason: sanitizer out_of_bounds
for (int i = thread; i < n; i += stride) {
    float4 u = x4[i], v = y4[i];
    out4[i] = {a * u.x + v.x, a * u.y + v.y, a * u.z + v.z, a * u.w + v.w};
}
