// Misaligned: pairs of half are taken from an odd element on.
//   Mistake   Pairs (1, 2), (3, 4), ... start 2 bytes beside a multiple of 4.
//   Why       A half2 load takes 4 bytes from an address divisible by 4.
//   Fix       Load the two halves one by one and join them in registers.
//
// expect: misaligned
// launch: grid=1 block=32 args=x:float16[65],y[32]
// array: x
// index: 1
// block: 0
// threads: 0
// result: y = x[1:65].float().view(32, 2).sum(1)
#include <cuda_fp16.h>

extern "C" __global__ void bad(const __half* x, float* y) {
    int i = threadIdx.x;
    __half2 pair = reinterpret_cast<const __half2*>(x + 1)[i];  // <-- here
    y[i] = __low2float(pair) + __high2float(pair);
}

extern "C" __global__ void good(const __half* x, float* y) {
    int i = threadIdx.x;
    __half2 pair = __halves2half2(x[2 * i + 1], x[2 * i + 2]);
    y[i] = __low2float(pair) + __high2float(pair);
}
