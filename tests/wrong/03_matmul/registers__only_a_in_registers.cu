// reason: mismatch
for (int i = 0; i < PATCH; ++i) {
    float left = a_tile[d][y + SIDE * i];      // right, and b is loaded once for every row
    for (int j = 0; j < PATCH; ++j) sum[i][j] += left * b_tile[d][x + SIDE * j];
}
