// Deadlock: half of a warp waits for the block, the other half for the warp.
//   Mistake   Lanes 0 to 15 stand in __syncthreads(), lanes 16 to 31 in __syncwarp(), which names all 32.
//   Why       Each half waits until the other comes to its own barrier. Neither ever does.
//   Fix       All meet at the same barriers in the same order.
//
// expect: deadlock
// launch: grid=1 block=32 args=x[32],y[32]
// block: 0
// result: y = torch.cat([2 * x[:16], -x[16:]]).flip(0)

extern "C" __global__ void bad(const float* x, float* y) {
    __shared__ float tile[32];
    int t = threadIdx.x;
    if (t < 16) {
        tile[t] = 2.0f * x[t];
        __syncthreads();  // <-- here
    } else {
        tile[t] = -x[t];
        __syncwarp();  // <-- here
    }
    y[t] = tile[31 - t];
}

extern "C" __global__ void good(const float* x, float* y) {
    __shared__ float tile[32];
    int t = threadIdx.x;
    if (t < 16) {
        tile[t] = 2.0f * x[t];
    } else {
        tile[t] = -x[t];
    }
    __syncthreads();
    y[t] = tile[31 - t];
}
