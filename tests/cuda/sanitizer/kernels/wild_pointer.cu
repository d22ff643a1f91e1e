// Out of bounds: two 32-bit ids read as one 64-bit id.
//   Mistake   The ids are int32, and the kernel reads them as long long.
//   Why       One id's bits become the upper half of another: the index is billions too large and the address points
//             nowhere. `void*` switched off the check that would have refused the tensor.
//   Fix       Read the type that is stored.
//
// expect: out_of_bounds
// launch: grid=1 block=32 args=table[8],ids:int32[64]=5,y[32]
// block: 0
// threads: 0
// result: y = table[5].expand(32)

extern "C" __global__ void bad(const float* table, const void* ids, float* y) {
    int i = threadIdx.x;
    long long id = static_cast<const long long*>(ids)[i];
    y[i] = table[id];  // <-- here
}

extern "C" __global__ void good(const float* table, const void* ids, float* y) {
    int i = threadIdx.x;
    long long id = static_cast<const int*>(ids)[i];
    y[i] = table[id];
}
