// Race: two arrays are carved out of one buffer and overlap.
//   Mistake   The buffer counts bytes, and the second array is placed blockDim.x bytes in, not blockDim.x floats.
//   Why       keys[16] and values[0] are the same memory, written by threads 16 and 0.
//   Fix       blockDim.x * sizeof(float).
//
// expect: race
// launch: grid=1 block=64 shared_mem=512 args=x[64],y[64]
// block: 0
// result: y = x.flip(0) * 2 + x

extern "C" __global__ void bad(const float* x, float* y) {
    extern __shared__ float4 buffer[];
    unsigned char* bytes = reinterpret_cast<unsigned char*>(buffer);
    float* keys = reinterpret_cast<float*>(bytes);
    float* values = reinterpret_cast<float*>(bytes + blockDim.x);
    int t = threadIdx.x;
    keys[t] = x[t];  // <-- here
    values[t] = 2.0f * x[t];  // <-- here
    __syncthreads();
    y[t] = keys[t] + values[63 - t];
}

extern "C" __global__ void good(const float* x, float* y) {
    extern __shared__ float4 buffer[];
    unsigned char* bytes = reinterpret_cast<unsigned char*>(buffer);
    float* keys = reinterpret_cast<float*>(bytes);
    float* values = reinterpret_cast<float*>(bytes + blockDim.x * sizeof(float));
    int t = threadIdx.x;
    keys[t] = x[t];
    values[t] = 2.0f * x[t];
    __syncthreads();
    y[t] = keys[t] + values[63 - t];
}
