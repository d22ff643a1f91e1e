// Deadlock: two halves of a warp each name one lane of the other.
//   Mistake   The masks 0x0001ffff and 0xffff8000 are one lane too wide.
//   Why       Lanes 0 to 15 wait for lane 16, which waits with the upper half for lane 15, which waits with the lower.
//   Fix       0x0000ffff and 0xffff0000.
//
// expect: deadlock
// launch: grid=1 block=32 args=x[32],y[32]
// block: 0
// result: y = x.view(2, 16).flip(1).flatten()

extern "C" __global__ void bad(const float* x, float* y) {
    __shared__ float tile[32];
    int t = threadIdx.x;
    tile[t] = x[t];
    if (t < 16) {
        __syncwarp(0x0001ffffu);  // <-- here
        y[t] = tile[15 - t];
    } else {
        __syncwarp(0xffff8000u);  // <-- here
        y[t] = tile[47 - t];
    }
}

extern "C" __global__ void good(const float* x, float* y) {
    __shared__ float tile[32];
    int t = threadIdx.x;
    tile[t] = x[t];
    if (t < 16) {
        __syncwarp(0x0000ffffu);
        y[t] = tile[15 - t];
    } else {
        __syncwarp(0xffff0000u);
        y[t] = tile[47 - t];
    }
}
