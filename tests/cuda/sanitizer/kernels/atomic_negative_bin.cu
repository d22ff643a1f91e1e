// Out of bounds: a histogram of signed values counts into negative bins.
//   Mistake   The bin is `(int)(8 * x)`, and x reaches from -1 to 1.
//   Why       An atomic goes where its address points, like any store. Counts of negative values land in front of the array.
//   Fix       Shift the values to start at 0, and keep the largest in the last bin.
//
// expect: out_of_bounds
// launch: grid=4 block=64 args=x[256],counts:int32[8]=0
// array: counts
// block: 0
// result: counts = torch.bincount(((x + 1) * 4).long().clamp(0, 7), minlength=8).int()

extern "C" __global__ void bad(const float* x, int* counts) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int bin = static_cast<int>(8.0f * x[i]);
    atomicAdd(&counts[bin], 1);  // <-- here
}

extern "C" __global__ void good(const float* x, int* counts) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int bin = min(static_cast<int>((x[i] + 1.0f) * 4.0f), 7);
    atomicAdd(&counts[bin], 1);
}
