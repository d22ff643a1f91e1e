// Clean: a lock among the lanes of a warp. Since Volta each lane makes progress by itself, so the holder gets to release.
//
// expect: clean
// launch: grid=4 block=64 args=lock:int32[1]=0,x:int32[256],total:int32[1]=0
// result: total = x.sum().int().view(1)

extern "C" __global__ void good(int* lock, const int* x, int* total) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    bool done = false;
    while (!done) {
        if (atomicCAS(lock, 0, 1) == 0) {
            __threadfence();
            *total += x[i];
            __threadfence();
            atomicExch(lock, 0);
            done = true;
        }
    }
}
