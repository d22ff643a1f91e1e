// Out of bounds: the optional bias was not given.
//   Mistake   The caller passes None for "no bias", and the kernel reads the bias all the same.
//   Why       None arrives as a null pointer. On a GPU the launch fails and takes the process's CUDA context with it.
//   Fix       Ask before reading.
//
// expect: out_of_bounds
// launch: grid=1 block=64 args=x[64],bias=null,y[64]
// block: 0
// threads: 0
// result: y = x

extern "C" __global__ void bad(const float* x, const float* bias, float* y) {
    int i = threadIdx.x;
    float b = bias[i];  // <-- here
    y[i] = x[i] + b;
}

extern "C" __global__ void good(const float* x, const float* bias, float* y) {
    int i = threadIdx.x;
    float b = bias ? bias[i] : 0.0f;
    y[i] = x[i] + b;
}
