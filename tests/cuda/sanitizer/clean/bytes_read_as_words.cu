// Clean: four threads write a byte each, and after a barrier one reads the four as a word.
//
// expect: clean
// launch: grid=2 block=64 args=x:uint8[128],y:int32[32]
// result: y = torch.tensor(struct.unpack("<32i", bytes(x.tolist()))).int()

extern "C" __global__ void good(const unsigned char* x, int* y) {
    __shared__ __align__(4) unsigned char bytes[64];
    int t = threadIdx.x;
    bytes[t] = x[blockIdx.x * 64 + t];
    __syncthreads();
    if (t < 16) y[blockIdx.x * 16 + t] = reinterpret_cast<const int*>(bytes)[t];
}
