// reason: sanitizer barrier_divergence
if (row + r < rows && col + c < cols) {
    tile[r][c] = x[(row + r) * cols + col + c];
    __syncthreads();
}
if (col + r < cols && row + c < rows) out[(col + r) * rows + row + c] = tile[c][r];
