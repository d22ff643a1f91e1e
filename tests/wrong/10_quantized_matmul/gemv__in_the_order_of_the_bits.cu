// reason: mismatch
for (int i = 0; i < 8; ++i) sum += scale * (float(word >> 4 * i & 15) - zero) * x[first + i];
