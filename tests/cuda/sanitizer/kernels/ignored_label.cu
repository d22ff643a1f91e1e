// Out of bounds: the label that means "ignore me" is used as an index.
//   Mistake   Labels to be skipped are marked -100, and the lookup does not look.
//   Why       probability[-100] is memory in front of the tensor, 100 elements away, and reads a plausible number.
//   Fix       A marked label has loss 0.
//
// expect: out_of_bounds
// launch: grid=1 block=32 args=probability[32,50],label:int32[32]=-100,loss[32],classes=50
// array: probability
// index: -100
// block: 0
// threads: 0
// result: loss = torch.zeros(32)

extern "C" __global__ void bad(const float* probability, const int* label, float* loss, int classes) {
    int i = threadIdx.x;
    loss[i] = 1.0f - probability[i * classes + label[i]];  // <-- here
}

extern "C" __global__ void good(const float* probability, const int* label, float* loss, int classes) {
    int i = threadIdx.x;
    loss[i] = label[i] < 0 ? 0.0f : 1.0f - probability[i * classes + label[i]];
}
