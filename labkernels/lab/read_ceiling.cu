// How fast this GPU reads its memory when nothing else is in the way: 8 loads of 16 bytes in flight a thread, and nothing written.
constexpr int THREADS = 256, LOADS = 8;

extern "C" __global__ void __launch_bounds__(THREADS) read_all(const float4* __restrict__ x, float* never, long long count) {
    const long long first = (long long)blockIdx.x * (THREADS * LOADS) + threadIdx.x;
    float4 loaded[LOADS];
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
        const long long index = first + i * THREADS;
        loaded[i] = index < count ? x[index] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < LOADS; ++i) sum += (loaded[i].x + loaded[i].y) + (loaded[i].z + loaded[i].w);
    if (sum != sum) *never = sum;  // no sum of numbers is NaN, which the compiler cannot know: it must load them
}
