// Out of bounds: a grid-stride loop runs one element too far.
//   Mistake   `i <= n` where `i < n` is meant.
//   Why       Element n does not exist. One thread of the whole grid reaches it, so the error comes and goes with the
//             launch configuration.
//   Fix       `i < n`.
//
// expect: out_of_bounds
// launch: grid=2 block=32 args=y[100],value=-2.5,n=100
// array: y
// index: 100
// block: 1
// threads: 4
// result: y = torch.full((100,), -2.5)

extern "C" __global__ void bad(float* y, float value, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i <= n; i += gridDim.x * blockDim.x) {
        y[i] = value;  // <-- here
    }
}

extern "C" __global__ void good(float* y, float value, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        y[i] = value;
    }
}
