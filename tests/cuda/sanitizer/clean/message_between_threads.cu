// Clean: a value is handed over by fence and flag, without a barrier.
//   The writer's fence orders value before flag, the reader's fence orders flag before value.
//
// expect: clean
// launch: grid=1 block=64 args=x[64],box[1],flag:int32[1]=0,y[1]
// result: y = 3 * x[:1]

extern "C" __global__ void good(const float* x, float* box, int* flag, float* y) {
    if (threadIdx.x == 0) {
        box[0] = 3.0f * x[0];
        __threadfence();
        atomicExch(flag, 1);
    }
    if (threadIdx.x == 40) {
        while (atomicAdd(flag, 0) == 0) {}
        __threadfence();
        y[0] = box[0];
    }
}
