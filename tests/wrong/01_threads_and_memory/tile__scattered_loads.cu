// reason: mismatch
if (col + r < cols && row + c < rows) tile[c][r] = x[(row + c) * cols + col + r];      // right, and c counts rows of x
__syncthreads();
if (col + r < cols && row + c < rows) out[(col + r) * rows + row + c] = tile[c][r];
