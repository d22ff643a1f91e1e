// reason: sanitizer uninitialized
if (row + r < rows && col + c < cols) tile[r][c] = x[(row + r) * cols + col + c];
__syncthreads();
out[(col + r) * rows + row + c] = tile[c][r];
