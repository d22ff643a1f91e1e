// reason: mismatch
out[i] = a * x[i];
