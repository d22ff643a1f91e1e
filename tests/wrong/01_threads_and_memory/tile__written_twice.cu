// reason: mismatch
if (row + r < rows && col + c < cols) tile[r][c] = x[(row + r) * cols + col + c];
if (col + r < cols && row + c < rows) out[(col + r) * rows + row + c] = 0.0f;      // coalesced, but for nothing
__syncthreads();
if (col + r < cols && row + c < rows) out[(col + r) * rows + row + c] = tile[c][r];
