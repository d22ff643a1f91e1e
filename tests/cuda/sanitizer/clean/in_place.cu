// Clean: input and output are the same tensor, and each thread keeps to its own element.
//
// expect: clean
// launch: grid=2 block=32 args=x[50],y=x,n=50
// result: y = x * x

extern "C" __global__ void good(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] * x[i];
}
