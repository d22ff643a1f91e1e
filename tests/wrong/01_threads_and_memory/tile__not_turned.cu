// reason: mismatch
if (row + r < rows && col + c < cols) tile[r][c] = x[(row + r) * cols + col + c];
__syncthreads();
if (col + r < cols && row + c < rows) out[(col + r) * rows + row + c] = r < 32 && c < 32 ? (row + r < rows && col + c < cols ? tile[r][c] : 0.0f) : 0.0f;
