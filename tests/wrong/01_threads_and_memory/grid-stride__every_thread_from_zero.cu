// reason: sanitizer race
for (int i = 0; i < n; i += gridDim.x * blockDim.x) out[i] = a * x[i] + y[i];
