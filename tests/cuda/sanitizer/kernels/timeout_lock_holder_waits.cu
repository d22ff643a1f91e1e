// Timeout: the holder of a lock waits for lanes that want the lock.
//   Mistake   __syncwarp() between taking the lock and giving it back.
//   Why       One lane holds the lock and waits for its warp; the warp's other lanes spin until the lock is free.
//   Fix       Give the lock back first.
//
// expect: timeout
// launch: grid=1 block=32 args=lock:int32[1]=0,x:int32[32],total:int32[1]=0
// block: 0
// result: total = x.sum().int().view(1)

extern "C" __global__ void bad(int* lock, const int* x, int* total) {
    while (atomicCAS(lock, 0, 1) != 0) {}  // <-- here
    __threadfence();
    *total += x[threadIdx.x];
    __syncwarp();  // <-- here
    __threadfence();
    atomicExch(lock, 0);
}

extern "C" __global__ void good(int* lock, const int* x, int* total) {
    while (atomicCAS(lock, 0, 1) != 0) {}
    __threadfence();
    *total += x[threadIdx.x];
    __threadfence();
    atomicExch(lock, 0);
    __syncwarp();
}
