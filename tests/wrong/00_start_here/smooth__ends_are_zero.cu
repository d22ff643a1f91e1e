// reason: mismatch
if (i == 0 || i == n - 1) out[i] = 0;
else out[i] = (x[i - 1] + x[i] + x[i + 1]) / 3;
