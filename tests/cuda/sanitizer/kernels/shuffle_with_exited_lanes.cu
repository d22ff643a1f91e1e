// Barrier divergence: a warp reduction after lanes have left.
//   Mistake   Threads past the end return; the rest of the last warp shuffles with the full mask.
//   Why       Exited lanes do not answer a shuffle; what is read from them is undefined.
//   Fix       Keep all lanes, and let those past the end bring 0.
//
// expect: barrier_divergence
// launch: grid=1 block=64 args=x[50],y[2],n=50
// block: 0
// result: y = torch.stack([x[:32].sum(), x[32:].sum()])

extern "C" __global__ void bad(const float* x, float* y, int n) {
    int t = threadIdx.x;
    if (t >= n) return;
    float sum = x[t];
    for (int offset = 16; offset > 0; offset /= 2) {
        sum += __shfl_down_sync(0xffffffffu, sum, offset);  // <-- here
    }
    if (t % 32 == 0) y[t / 32] = sum;
}

extern "C" __global__ void good(const float* x, float* y, int n) {
    int t = threadIdx.x;
    float sum = t < n ? x[t] : 0.0f;
    for (int offset = 16; offset > 0; offset /= 2) {
        sum += __shfl_down_sync(0xffffffffu, sum, offset);
    }
    if (t % 32 == 0) y[t / 32] = sum;
}
