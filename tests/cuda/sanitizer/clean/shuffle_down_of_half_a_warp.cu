// Clean: the upper lanes of a shrinking sum fetch undefined values, and nobody uses what they make of them.
//
// expect: clean
// launch: grid=1 block=32 args=x[32],y[1]
// result: y = x[:16].sum().view(1)

extern "C" __global__ void good(const float* x, float* y) {
    int lane = threadIdx.x;
    if (lane < 16) {
        float sum = x[lane];
        for (int offset = 8; offset > 0; offset /= 2) sum += __shfl_down_sync(0x0000ffffu, sum, offset);
        if (lane == 0) y[0] = sum;
    }
}
