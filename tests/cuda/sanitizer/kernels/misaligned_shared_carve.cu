// Misaligned: an int2 array is carved from shared memory behind an odd number of ints.
//   Mistake   33 ints come first, so the int2 array starts at byte 132, which 8 does not divide.
//   Why       Who carves several arrays out of one buffer must see to their alignment; the compiler no longer does.
//   Fix       Round the offset up to a multiple of sizeof(int2).
//
// expect: misaligned
// launch: grid=1 block=32 shared_mem=400 args=x:int32[33],y:int32[32]
// block: 0
// result: y = x[:32] + x[1:]

extern "C" __global__ void bad(const int* x, int* y) {
    extern __shared__ int2 buffer[];
    int t = threadIdx.x;
    int* values = reinterpret_cast<int*>(buffer);
    int2* pairs = reinterpret_cast<int2*>(values + 33);
    values[t] = x[t];
    if (t == 0) values[32] = x[32];
    __syncthreads();
    pairs[t] = make_int2(values[t], values[t + 1]);  // <-- here
    __syncthreads();
    y[t] = pairs[t].x + pairs[t].y;
}

extern "C" __global__ void good(const int* x, int* y) {
    extern __shared__ int2 buffer[];
    int t = threadIdx.x;
    int* values = reinterpret_cast<int*>(buffer);
    int2* pairs = reinterpret_cast<int2*>(values + 34);
    values[t] = x[t];
    if (t == 0) values[32] = x[32];
    __syncthreads();
    pairs[t] = make_int2(values[t], values[t + 1]);
    __syncthreads();
    y[t] = pairs[t].x + pairs[t].y;
}
