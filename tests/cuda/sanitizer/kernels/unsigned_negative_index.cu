// Out of bounds: an unsigned index goes below zero and comes out at four billion.
//   Mistake   threadIdx.x is unsigned, so in thread 0 the index `i - 1` is not -1 but 4294967295.
//   Why       The address lies 16 GB behind x. A test such as `i - 1 >= 0` would not help: it is always true.
//   Fix       Compare before subtracting.
//
// expect: out_of_bounds
// launch: grid=1 block=64 args=x[64],y[64]
// block: 0
// threads: 0
// result: y = x - torch.cat([torch.zeros(1), x[:-1]])

extern "C" __global__ void bad(const float* x, float* y) {
    unsigned i = threadIdx.x;
    float left = x[i - 1];  // <-- here
    y[i] = x[i] - left;
}

extern "C" __global__ void good(const float* x, float* y) {
    unsigned i = threadIdx.x;
    float left = i > 0 ? x[i - 1] : 0.0f;
    y[i] = x[i] - left;
}
