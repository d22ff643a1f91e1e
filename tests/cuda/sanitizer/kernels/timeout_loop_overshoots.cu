// Timeout: a loop steps over its end.
//   Mistake   `i != n` with a stride of 64 and n = 100: only thread 36 ever stands at exactly 100.
//   Why       The others' loop runs on; `% n` keeps the accesses inside, so nothing else stops it.
//   Fix       `i < n`.
//
// expect: timeout
// launch: grid=1 block=64 args=x[100],y[64],n=100
// block: 0
// result: y = x[:64] + torch.cat([x[64:], torch.zeros(28)])

extern "C" __global__ void bad(const float* x, float* y, int n) {
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i != n; i += 64) {  // <-- here
        sum += x[i % n];  // <-- here
        y[threadIdx.x] = sum;  // <-- here
    }
}

extern "C" __global__ void good(const float* x, float* y, int n) {
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < n; i += 64) {
        sum += x[i];
        y[threadIdx.x] = sum;
    }
}
