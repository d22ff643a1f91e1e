// Clean: the two halves of a warp synchronise by themselves, each with its own mask and at its own pace.
//
// expect: clean
// launch: grid=1 block=32 args=x[32],y[32]
// result: y = torch.cat([x[:16].flip(0), x[16:].roll(-1)])

extern "C" __global__ void good(const float* x, float* y) {
    __shared__ float tile[32];
    int t = threadIdx.x;
    tile[t] = x[t];
    if (t < 16) {
        __syncwarp(0x0000ffffu);
        y[t] = tile[15 - t];
    } else {
        __syncwarp(0xffff0000u);
        y[t] = tile[16 + (t + 1) % 16];
    }
}
