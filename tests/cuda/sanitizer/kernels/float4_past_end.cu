// Out of bounds: the last float4 of a row is only half there.
//   Mistake   30 elements are read as 8 float4, rounding up.
//   Why       The last load takes elements 28 to 31, and the array ends at 29. Its first half is right, which hides it.
//   Fix       Vectors for the whole groups of four, single loads for the rest.
//
// expect: out_of_bounds
// launch: grid=1 block=8 args=x[30],y[8],n=30
// array: x
// block: 0
// threads: 7
// result: y = torch.cat([x, torch.zeros(2)]).view(8, 4).sum(1)

extern "C" __global__ void bad(const float* x, float* y, int n) {
    int i = threadIdx.x;
    float4 v = reinterpret_cast<const float4*>(x)[i];  // <-- here
    y[i] = v.x + v.y + (4 * i + 2 < n ? v.z : 0.0f) + (4 * i + 3 < n ? v.w : 0.0f);
}

extern "C" __global__ void good(const float* x, float* y, int n) {
    int i = threadIdx.x;
    if (4 * i + 3 < n) {
        float4 v = reinterpret_cast<const float4*>(x)[i];
        y[i] = v.x + v.y + v.z + v.w;
    } else {
        float sum = 0.0f;
        for (int k = 4 * i; k < n; k++) sum += x[k];
        y[i] = sum;
    }
}
