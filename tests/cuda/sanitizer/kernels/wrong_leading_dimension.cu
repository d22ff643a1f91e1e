// Out of bounds: a transpose counts the rows of its result with the wrong length.
//   Mistake   y has `rows` elements a row, and the index counts `cols` of them.
//   Why       Rows and columns change places in a transpose, the leading dimension with them. On square matrices the
//             mistake cannot be seen.
//   Fix       Count with the row length of the array that is indexed.
//
// expect: out_of_bounds
// launch: grid=3 block=8x8 args=x[8,24],y[24,8],rows=8,cols=24
// array: y
// index: 192
// block: 1
// threads: (0, 0, 0)
// result: y = x.T

extern "C" __global__ void bad(const float* x, float* y, int rows, int cols) {
    int row = threadIdx.y;
    int col = blockIdx.x * blockDim.x + threadIdx.x;
    float value = x[row * cols + col];
    y[col * cols + row] = value;  // <-- here
}

extern "C" __global__ void good(const float* x, float* y, int rows, int cols) {
    int row = threadIdx.y;
    int col = blockIdx.x * blockDim.x + threadIdx.x;
    float value = x[row * cols + col];
    y[col * rows + row] = value;
}
