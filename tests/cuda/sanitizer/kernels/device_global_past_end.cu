// Out of bounds: a table in global memory is shorter than the block.
//   Mistake   The table has 8 entries, and the index runs to 31.
//   Why       A `__device__` array is bounded like any other; its neighbour is whatever the linker put there.
//   Fix       Reduce the index to the table's length.
//
// expect: out_of_bounds
// launch: grid=1 block=32 args=x[32],y[32]
// array: power_of_two
// index: 8
// block: 0
// threads: 8
// result: y = x * 2.0 ** (torch.arange(32) % 8)

__device__ float power_of_two[8] = {1, 2, 4, 8, 16, 32, 64, 128};

extern "C" __global__ void bad(const float* x, float* y) {
    int i = threadIdx.x;
    float factor = power_of_two[i];  // <-- here
    y[i] = x[i] * factor;
}

extern "C" __global__ void good(const float* x, float* y) {
    int i = threadIdx.x;
    float factor = power_of_two[i % 8];
    y[i] = x[i] * factor;
}
