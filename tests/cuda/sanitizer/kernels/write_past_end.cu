// Out of bounds: the last block writes past the end.
//   Mistake   128 threads are launched for 100 elements, and every one of them writes.
//   Why       Threads 4 to 31 of the last block write to memory behind y. It belongs to some other tensor, whose
//             values change for no visible reason.
//   Fix       Let only threads with an element of their own write.
//
// expect: out_of_bounds
// launch: grid=4 block=32 args=y[100],value=0.5,n=100
// array: y
// index: 100
// block: 3
// threads: 4
// result: y = torch.full((100,), 0.5)

extern "C" __global__ void bad(float* y, float value, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = value;  // <-- here
}

extern "C" __global__ void good(float* y, float value, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = value;
}
