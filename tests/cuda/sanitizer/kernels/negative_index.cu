// Out of bounds: a smoothing filter reads the left neighbour of element 0.
//   Mistake   Nobody asks whether element i - 1 exists.
//   Why       x[-1] is the memory in front of x. Python would wrap round to the last element; C++ does not.
//   Fix       Treat the left edge by itself.
//
// expect: out_of_bounds
// launch: grid=4 block=32 args=x[100],y[100],n=100
// array: x
// index: -1
// block: 0
// threads: 0
// result: y = 0.5 * (torch.cat([x[:1], x[:-1]]) + x)

extern "C" __global__ void bad(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        float left = x[i - 1];  // <-- here
        y[i] = 0.5f * (left + x[i]);
    }
}

extern "C" __global__ void good(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        float left = x[i > 0 ? i - 1 : 0];
        y[i] = 0.5f * (left + x[i]);
    }
}
