// Timeout: an unsigned counter is asked whether it is still at least 0.
//   Mistake   `for (unsigned bit = 31; bit >= 0; bit--)`.
//   Why       Below 0 an unsigned wraps round to 4294967295, which is at least 0 too.
//   Fix       Count with int, or test before decrementing.
//
// expect: timeout
// launch: grid=1 block=32 args=x:int32[32],y:int32[32]
// block: 0
// result: y = torch.tensor([bin(v & 0xffffffff).count("1") for v in x.tolist()]).int()

extern "C" __global__ void bad(const int* x, int* y) {
    int count = 0;
    for (unsigned bit = 31; bit >= 0; bit--) {  // <-- here
        count += x[threadIdx.x] >> (bit & 31) & 1;  // <-- here
        y[threadIdx.x] = count;  // <-- here
    }
}

extern "C" __global__ void good(const int* x, int* y) {
    int count = 0;
    for (int bit = 31; bit >= 0; bit--) {
        count += x[threadIdx.x] >> (bit & 31) & 1;
        y[threadIdx.x] = count;
    }
}
