// Out of bounds: a tile has no room for the row below it.
//   Mistake   The tile holds 16 rows; the vertical difference needs a 17th, and it is stored all the same.
//   Why       Shared memory ends where the last __shared__ array ends. Behind it may lie another array of the block.
//   Fix       Declare the tile with the halo row.
//
// expect: out_of_bounds
// launch: grid=1 block=16x16 args=x[17,16],y[16,16]
// array: tile
// index: 16
// block: 0
// threads: (0, 0, 0)
// result: y = x[1:] - x[:-1]

extern "C" __global__ void bad(const float* x, float* y) {
    __shared__ float tile[16][16];
    int col = threadIdx.x, row = threadIdx.y, rows = blockDim.y;
    tile[row][col] = x[row * 16 + col];
    if (row == 0) tile[rows][col] = x[rows * 16 + col];  // <-- here
    __syncthreads();
    y[row * 16 + col] = (row + 1 < rows ? tile[row + 1][col] : x[rows * 16 + col]) - tile[row][col];
}

extern "C" __global__ void good(const float* x, float* y) {
    __shared__ float tile[17][16];
    int col = threadIdx.x, row = threadIdx.y, rows = blockDim.y;
    tile[row][col] = x[row * 16 + col];
    if (row == 0) tile[rows][col] = x[rows * 16 + col];
    __syncthreads();
    y[row * 16 + col] = tile[row + 1][col] - tile[row][col];
}
