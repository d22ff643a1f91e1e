// reason: mismatch
for (int i = 0; i < PATCH; ++i) sum[i][i] += a_tile[d][y + SIDE * i] * b_tile[d][x + SIDE * i];      // few loads, and 12 of 16 sums are 0
