// reason: mismatch
float left[PATCH], right[PATCH];
for (int i = 0; i < PATCH; ++i) left[i] = a_tile[d][y + SIDE * i], right[i] = b_tile[d][PATCH * x + i];      // belongs to other columns of c
for (int i = 0; i < PATCH; ++i)
    for (int j = 0; j < PATCH; ++j) sum[i][j] += left[i] * right[j];
