// reason: mismatch
for (int i = 0; i < PATCH; ++i)      // right, and each FMA loads twice
    for (int j = 0; j < PATCH; ++j) sum[i][j] += a_tile[d][y + SIDE * i] * b_tile[d][x + SIDE * j];
