// Out of bounds: the right neighbour of a tile's last column.
//   Mistake   Every thread reads tile[row][col + 1], and the last column has no right neighbour in the tile.
//   Why       tile[row][16] is the first element of the next row: a wrong value, quietly. In the last row there is no
//             next row, and the read leaves the array.
//   Fix       Give the tile a halo column and fill it.
//
// expect: out_of_bounds
// launch: grid=1 block=16x16 args=x[16,17],y[16,16]
// array: tile
// block: 0
// result: y = x[:, 1:] - x[:, :-1]

extern "C" __global__ void bad(const float* x, float* y) {
    __shared__ float tile[16][16];
    int col = threadIdx.x, row = threadIdx.y;
    tile[row][col] = x[row * 17 + col];
    __syncthreads();
    float right = tile[row][col + 1];  // <-- here
    y[row * 16 + col] = right - tile[row][col];
}

extern "C" __global__ void good(const float* x, float* y) {
    __shared__ float tile[16][17];
    int col = threadIdx.x, row = threadIdx.y;
    tile[row][col] = x[row * 17 + col];
    if (col == 15) tile[row][16] = x[row * 17 + 16];
    __syncthreads();
    float right = tile[row][col + 1];
    y[row * 16 + col] = right - tile[row][col];
}
