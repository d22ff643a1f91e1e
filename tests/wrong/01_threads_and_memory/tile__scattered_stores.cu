// reason: mismatch
if (row + r < rows && col + c < cols) tile[r][c] = x[(row + r) * cols + col + c];
__syncthreads();
if (row + r < rows && col + c < cols) out[(col + c) * rows + row + r] = tile[r][c];      // right, and c counts rows of out
