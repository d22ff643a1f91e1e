// reason: mismatch
out[i] = a * (x[i] + y[i]);
