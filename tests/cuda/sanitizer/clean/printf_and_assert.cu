// Clean: printf and assert are allowed, and an assert that holds says nothing.
//
// expect: clean
// launch: grid=1 block=4 args=x[4],y[4]
// result: y = 2 * x

extern "C" __global__ void good(const float* x, float* y) {
    int i = threadIdx.x;
    assert(x[i] >= -1.0f && x[i] < 1.0f);
    printf("x[%d] = %f\n", i, x[i]);
    y[i] = 2.0f * x[i];
}
