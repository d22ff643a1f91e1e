// Misaligned: rows of 30 floats read as float4.
//   Mistake   Row 1 starts at element 30, which is 120 bytes in and no multiple of 16.
//   Why       A vector load takes 16 bytes from an address divisible by 16. Only rows whose length is a multiple of 4
//             start on one; CUDA gives an error here, not a slow load.
//   Fix       Read the elements one by one where the row length does not allow vectors.
//
// expect: misaligned
// launch: grid=4 block=1 args=x[4,30],y[4]
// array: x
// index: 30
// block: 1
// threads: 0
// result: y = x[:, :4].sum(1)

extern "C" __global__ void bad(const float* x, float* y) {
    const float* row = x + blockIdx.x * 30;
    float4 v = *reinterpret_cast<const float4*>(row);  // <-- here
    y[blockIdx.x] = v.x + v.y + v.z + v.w;
}

extern "C" __global__ void good(const float* x, float* y) {
    const float* row = x + blockIdx.x * 30;
    float4 v = make_float4(row[0], row[1], row[2], row[3]);
    y[blockIdx.x] = v.x + v.y + v.z + v.w;
}
