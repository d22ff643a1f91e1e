// Race: a ring buffer of bytes is written round and round in one go.
//   Mistake   64 threads write into 16 places, four threads into each; the newest value is wanted.
//   Why       The four are not ordered, so any of them may be the last. That each writes a byte changes nothing.
//   Fix       Only the newest 16 write.
//
// expect: race
// launch: grid=1 block=64 args=x:uint8[64],ring:uint8[16]
// array: ring
// block: 0
// result: ring = x[48:]

extern "C" __global__ void bad(const unsigned char* x, unsigned char* ring) {
    int t = threadIdx.x;
    ring[t % 16] = x[t];  // <-- here
}

extern "C" __global__ void good(const unsigned char* x, unsigned char* ring) {
    int t = threadIdx.x;
    if (t >= 48) ring[t % 16] = x[t];
}
