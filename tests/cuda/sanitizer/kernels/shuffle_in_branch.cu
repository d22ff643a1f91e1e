// Barrier divergence: half of a warp shuffles, and its mask names all of it.
//   Mistake   __shfl_xor_sync with the full mask inside `if (lane < 16)`.
//   Why       The mask is a promise that all named lanes will make this call. Lanes 16 to 31 never do.
//   Fix       Name the lanes that come: 0x0000ffff.
//
// expect: barrier_divergence
// launch: grid=1 block=32 args=x[32],y[1]
// block: 0
// result: y = x[:16].sum().view(1)

extern "C" __global__ void bad(const float* x, float* y) {
    int lane = threadIdx.x;
    if (lane < 16) {
        float sum = x[lane];
        for (int offset = 8; offset > 0; offset /= 2) {
            sum += __shfl_xor_sync(0xffffffffu, sum, offset);  // <-- here
        }
        if (lane == 0) y[0] = sum;
    }
}

extern "C" __global__ void good(const float* x, float* y) {
    int lane = threadIdx.x;
    if (lane < 16) {
        float sum = x[lane];
        for (int offset = 8; offset > 0; offset /= 2) {
            sum += __shfl_xor_sync(0x0000ffffu, sum, offset);
        }
        if (lane == 0) y[0] = sum;
    }
}
