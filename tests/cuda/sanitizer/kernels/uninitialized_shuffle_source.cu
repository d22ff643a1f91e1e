// Uninitialized: a value is fetched from a lane that does not take part.
//   Mistake   The 16 lanes that scan half a warp ask lane 31 for the total. It stands outside the branch.
//   Why       A shuffle reads from a lane that calls it in the same moment. From any other lane the value is undefined.
//   Fix       The total of 16 lanes is in lane 15.
//
// expect: uninitialized
// launch: grid=1 block=32 args=x[32],y[16]
// block: 0
// result: y = x[:16].cumsum(0) / x[:16].sum()

extern "C" __global__ void bad(const float* x, float* y) {
    int lane = threadIdx.x;
    if (lane < 16) {
        float sum = x[lane];
        for (int offset = 1; offset < 16; offset *= 2) {
            float left = __shfl_up_sync(0x0000ffffu, sum, offset);
            if (lane >= offset) sum += left;
        }
        y[lane] = sum / __shfl_sync(0x0000ffffu, sum, 31);  // <-- here
    }
}

extern "C" __global__ void good(const float* x, float* y) {
    int lane = threadIdx.x;
    if (lane < 16) {
        float sum = x[lane];
        for (int offset = 1; offset < 16; offset *= 2) {
            float left = __shfl_up_sync(0x0000ffffu, sum, offset);
            if (lane >= offset) sum += left;
        }
        y[lane] = sum / __shfl_sync(0x0000ffffu, sum, 15);
    }
}
