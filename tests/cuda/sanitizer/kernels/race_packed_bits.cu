// Race: 32 threads each set a bit of the same word.
//   Mistake   `word |= bit` is a read, an or and a write, and the threads' turns mix.
//   Why       Two threads read the same old word; the later write loses the other's bit.
//   Fix       __ballot_sync collects a bit from each lane, and one lane writes.
//
// expect: race
// launch: grid=1 block=64 args=x[64],y:int32[2]=0
// array: y
// block: 0
// result: y = torch.tensor([sum(int(bit) << k for k, bit in enumerate(word)) for word in (x > 0).view(2, 32)]).int()

extern "C" __global__ void bad(const float* x, int* y) {
    int t = threadIdx.x;
    if (x[t] > 0.0f) y[t / 32] |= 1u << t % 32;  // <-- here
}

extern "C" __global__ void good(const float* x, int* y) {
    int t = threadIdx.x;
    unsigned word = __ballot_sync(0xffffffffu, x[t] > 0.0f);
    if (t % 32 == 0) y[t / 32] = word;
}
