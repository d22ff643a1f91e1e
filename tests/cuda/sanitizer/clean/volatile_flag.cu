// Clean: a volatile flag and fences. CUDA treats volatile accesses as relaxed atomics, so the flag itself is no race.
//
// expect: clean
// launch: grid=1 block=64 args=x[64],box[1],flag:int32[1]=0,y[1]
// result: y = 3 * x[:1]

extern "C" __global__ void good(const float* x, float* box, volatile int* flag, float* y) {
    if (threadIdx.x == 0) {
        box[0] = 3.0f * x[0];
        __threadfence();
        *flag = 1;
    }
    if (threadIdx.x == 40) {
        while (*flag == 0) {}
        __threadfence();
        y[0] = box[0];
    }
}
