// Clean: float4 loads from rows whose length allows them, and a store by another width than the loads.
//
// expect: clean
// launch: grid=4 block=8 args=x[4,32],y[4,32]
// result: y = 2 * x

extern "C" __global__ void good(const float* x, float* y) {
    int i = blockIdx.x * 32 + 4 * threadIdx.x;
    float4 v = *reinterpret_cast<const float4*>(x + i);
    float2 low = make_float2(2.0f * v.x, 2.0f * v.y);
    *reinterpret_cast<float2*>(y + i) = low;
    y[i + 2] = 2.0f * v.z;
    y[i + 3] = 2.0f * v.w;
}
