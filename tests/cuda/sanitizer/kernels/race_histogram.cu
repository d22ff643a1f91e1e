// Race: a histogram counts without atomics.
//   Mistake   `counts[b]++` by many threads.
//   Why       It reads, adds and writes. Two threads with the same bin read the same count, and one is lost.
//   Fix       atomicAdd.
//
// expect: race
// launch: grid=4 block=64 args=bin:int32[256]<16,counts:int32[16]=0
// array: counts
// result: counts = torch.bincount(bin, minlength=16).int()

extern "C" __global__ void bad(const int* bin, int* counts) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    counts[bin[i]]++;  // <-- here
}

extern "C" __global__ void good(const int* bin, int* counts) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&counts[bin[i]], 1);
}
