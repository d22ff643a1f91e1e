// Timeout: a thread returns with the lock in its hand.
//   Mistake   `return` for a value that needs no update stands between taking the lock and giving it back.
//   Why       The other threads wait for a lock whose holder no longer exists.
//   Fix       Decide before taking the lock.
//
// expect: timeout
// launch: grid=1 block=32 args=lock:int32[1]=0,x:int32[32],total:int32[1]=0
// block: 0
// result: total = x.clamp(min=0).sum().int().view(1)

extern "C" __global__ void bad(int* lock, const int* x, int* total) {
    while (atomicCAS(lock, 0, 1) != 0) {}  // <-- here
    __threadfence();
    if (x[threadIdx.x] <= 0) return;
    *total += x[threadIdx.x];
    __threadfence();
    atomicExch(lock, 0);
}

extern "C" __global__ void good(int* lock, const int* x, int* total) {
    if (x[threadIdx.x] <= 0) return;
    while (atomicCAS(lock, 0, 1) != 0) {}
    __threadfence();
    *total += x[threadIdx.x];
    __threadfence();
    atomicExch(lock, 0);
}
