// Race: odd threads read the half that the even thread beside them wrote.
//   Mistake   Nothing stands between storing a half and reading the neighbour's.
//   Why       The two halves share a 4-byte word, and one thread writes each. Sharing a word is no race, reading the other's
//             half is one.
//   Fix       __syncwarp().
//
// expect: race
// launch: grid=1 block=32 args=x:float16[32],y[32]
// array: tile
// block: 0
// result: y = torch.where(torch.arange(32) % 2 == 1, x.float() - x.float().roll(1), x.float())
#include <cuda_fp16.h>

extern "C" __global__ void bad(const __half* x, float* y) {
    __shared__ __half tile[32];
    int t = threadIdx.x;
    tile[t] = x[t];  // <-- here
    float value = __half2float(x[t]);
    if (t % 2 == 1) value -= __half2float(tile[t - 1]);  // <-- here
    y[t] = value;
}

extern "C" __global__ void good(const __half* x, float* y) {
    __shared__ __half tile[32];
    int t = threadIdx.x;
    tile[t] = x[t];
    __syncwarp();
    float value = __half2float(x[t]);
    if (t % 2 == 1) value -= __half2float(tile[t - 1]);
    y[t] = value;
}
