// Race: a flag says that a value is there, and nothing makes the value arrive first.
//   Mistake   The writer stores value, then flag; the reader waits for the flag and reads the value. No fences.
//   Why       A GPU may make the flag visible before the value. Volatile and atomics order themselves, not their neighbours.
//   Fix       __threadfence() between value and flag, on both sides.
//
// expect: race
// launch: grid=2 block=32 args=x[32],box[1],flag:int32[1]=0,y[1]
// array: box
// result: y = 3 * x[:1]

extern "C" __global__ void bad(const float* x, float* box, int* flag, float* y) {
    if (threadIdx.x != 0) return;
    if (blockIdx.x == 0) {
        box[0] = 3.0f * x[0];  // <-- here
        atomicExch(flag, 1);
    } else {
        while (atomicAdd(flag, 0) == 0) {}
        y[0] = box[0];  // <-- here
    }
}

extern "C" __global__ void good(const float* x, float* box, int* flag, float* y) {
    if (threadIdx.x != 0) return;
    if (blockIdx.x == 0) {
        box[0] = 3.0f * x[0];
        __threadfence();
        atomicExch(flag, 1);
    } else {
        while (atomicAdd(flag, 0) == 0) {}
        __threadfence();
        y[0] = box[0];
    }
}
