// Race: every thread writes the block's result.
//   Mistake   Each thread that holds a positive value stores its position in `last`; the largest is wanted.
//   Why       Which of several unordered writes stays is not defined: it need not be the largest.
//   Fix       atomicMax.
//
// expect: race
// launch: grid=1 block=64 args=x[64],y:int32[1]
// array: last
// block: 0
// result: y = (x > 0).nonzero().max().int().view(1)

extern "C" __global__ void bad(const float* x, int* y) {
    __shared__ int last;
    int t = threadIdx.x;
    if (t == 0) last = -1;
    __syncthreads();
    if (x[t] > 0.0f) last = t;  // <-- here
    __syncthreads();
    if (t == 0) y[0] = last;
}

extern "C" __global__ void good(const float* x, int* y) {
    __shared__ int last;
    int t = threadIdx.x;
    if (t == 0) last = -1;
    __syncthreads();
    if (x[t] > 0.0f) atomicMax(&last, t);
    __syncthreads();
    if (t == 0) y[0] = last;
}
