// Out of bounds: a difference reads the right neighbour of the last element.
//   Mistake   The guard `i < n` protects x[i], and x[i + 1] is read under it too.
//   Why       A guard protects the index that it names. The last element has no right neighbour.
//   Fix       Ask separately whether there is a neighbour.
//
// expect: out_of_bounds
// launch: grid=4 block=32 args=x[100],y[100],n=100
// array: x
// index: 100
// block: 3
// threads: 3
// result: y = torch.cat([x[1:], torch.zeros(1)]) - x

extern "C" __global__ void bad(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        float right = x[i + 1];  // <-- here
        y[i] = right - x[i];
    }
}

extern "C" __global__ void good(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        float right = i + 1 < n ? x[i + 1] : 0.0f;
        y[i] = right - x[i];
    }
}
