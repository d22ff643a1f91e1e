// Clean: neighbouring bytes of one word, written by different threads, are different memory locations.
//
// expect: clean
// launch: grid=2 block=32 args=x[64],y:uint8[64]
// result: y = (x > 0).to(torch.uint8)

extern "C" __global__ void good(const float* x, unsigned char* y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = x[i] > 0.0f;
}
