// Race: bins are counted while they are still being set to zero.
//   Mistake   No barrier between zeroing the bins and the first atomicAdd.
//   Why       atomicAdd protects against other atomics. A plain store by another thread can still wipe a count out.
//   Fix       __syncthreads() after zeroing.
//
// expect: race
// launch: grid=1 block=64 args=bin:int32[64]<64,counts:int32[64]
// array: count
// block: 0
// result: counts = torch.bincount(bin, minlength=64).int()

extern "C" __global__ void bad(const int* bin, int* counts) {
    __shared__ int count[64];
    int t = threadIdx.x;
    count[t] = 0;  // <-- here
    atomicAdd(&count[bin[t]], 1);  // <-- here
    __syncthreads();
    counts[t] = count[t];
}

extern "C" __global__ void good(const int* bin, int* counts) {
    __shared__ int count[64];
    int t = threadIdx.x;
    count[t] = 0;
    __syncthreads();
    atomicAdd(&count[bin[t]], 1);
    __syncthreads();
    counts[t] = count[t];
}
