// Clean: lanes may return, where those that stay name only each other.
//
// expect: clean
// launch: grid=1 block=32 args=x[32],y[32],n=20
// result: y = torch.cat([x[:20] - x[:20].max(), y[20:]])

extern "C" __global__ void good(const float* x, float* y, int n) {
    int lane = threadIdx.x;
    unsigned staying = __ballot_sync(0xffffffffu, lane < n);
    if (lane >= n) return;
    float largest = x[lane];
    for (int other = 0; other < n; other++) largest = fmaxf(largest, __shfl_sync(staying, x[lane], other));
    y[lane] = x[lane] - largest;
}
