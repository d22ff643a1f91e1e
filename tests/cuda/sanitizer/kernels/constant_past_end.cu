// Out of bounds: a filter has five taps, and six are used.
//   Mistake   `k <= taps` where `k < taps` is meant.
//   Why       The sixth weight is read from behind the array in constant memory, and often happens to be 0.
//   Fix       `k < taps`.
//
// expect: out_of_bounds
// launch: grid=1 block=32 args=x[40],y[32],taps=5
// array: weight
// index: 5
// block: 0
// threads: 0
// result: y = x.unfold(0, 5, 1)[:32] @ torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16

__constant__ float weight[5] = {0.0625f, 0.25f, 0.375f, 0.25f, 0.0625f};

extern "C" __global__ void bad(const float* x, float* y, int taps) {
    int i = threadIdx.x;
    float sum = 0.0f;
    for (int k = 0; k <= taps; k++) {
        float w = weight[k];  // <-- here
        sum += w * x[i + k];
    }
    y[i] = sum;
}

extern "C" __global__ void good(const float* x, float* y, int taps) {
    int i = threadIdx.x;
    float sum = 0.0f;
    for (int k = 0; k < taps; k++) {
        float w = weight[k];
        sum += w * x[i + k];
    }
    y[i] = sum;
}
