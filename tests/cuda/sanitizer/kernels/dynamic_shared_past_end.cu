// Out of bounds: a halo does not fit into the dynamic shared memory.
//   Mistake   The launch gives a block 64 floats. The kernel shifts its tile by one for the left halo and needs 65.
//   Why       The size of an `extern __shared__` array is known to the launch only; the compiler cannot warn.
//   Fix       Leave the halo in a register of the one thread that needs it.
//
// expect: out_of_bounds
// launch: grid=2 block=64 shared_mem=256 args=x[128],y[128]
// array: tile
// index: 64
// block: 0
// threads: 63
// result: y = x + torch.cat([x[:1], x[:-1]])

extern "C" __global__ void bad(const float* x, float* y) {
    extern __shared__ float tile[];
    int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
    tile[t + 1] = x[i];  // <-- here
    if (t == 0) tile[0] = x[i > 0 ? i - 1 : 0];
    __syncthreads();
    y[i] = x[i] + tile[t];
}

extern "C" __global__ void good(const float* x, float* y) {
    extern __shared__ float tile[];
    int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
    tile[t] = x[i];
    float halo = t == 0 ? x[i > 0 ? i - 1 : 0] : 0.0f;
    __syncthreads();
    y[i] = tile[t] + (t > 0 ? tile[t - 1] : halo);
}
