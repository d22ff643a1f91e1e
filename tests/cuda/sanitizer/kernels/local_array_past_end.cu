// Out of bounds: a thread's own array overflows.
//   Mistake   The window holds 4 values, and 5 are put into it.
//   Why       An array inside a kernel is private to the thread, but it is bounded too. Behind it lie the thread's other
//             variables.
//   Fix       `k < taps`.
//
// expect: out_of_bounds
// launch: grid=1 block=32 args=x[40],y[32],taps=4
// index: 4
// block: 0
// threads: 0
// result: y = x.unfold(0, 4, 1)[:32].amax(1)

extern "C" __global__ void bad(const float* x, float* y, int taps) {
    int i = threadIdx.x;
    float window[4];
    for (int k = 0; k <= taps; k++) window[k] = x[i + k];  // <-- here
    float largest = window[0];
    for (int k = 1; k < taps; k++) largest = fmaxf(largest, window[k]);
    y[i] = largest;
}

extern "C" __global__ void good(const float* x, float* y, int taps) {
    int i = threadIdx.x;
    float window[4];
    for (int k = 0; k < taps; k++) window[k] = x[i + k];
    float largest = window[0];
    for (int k = 1; k < taps; k++) largest = fmaxf(largest, window[k]);
    y[i] = largest;
}
