// Timeout: a thread spins in registers.
//   Mistake   A Collatz walk starts from 0, which it maps to 0 for ever.
//   Why       Every other start ends at 1, so the loop looks safe. It touches no memory and reaches no barrier.
//   Fix       Leave 0 out.
//
// expect: timeout
// launch: grid=1 block=32 args=y:int32[32]
// block: 0
// result: y = torch.tensor([0, 0, 1, 7, 2, 5, 8, 16, 3, 19, 6, 14, 9, 9, 17, 17, 4, 12, 20, 20, 7, 7, 15, 15, 10, 23, 10, 111, 18, 18, 18, 106]).int()

extern "C" __global__ void bad(int* y) {
    unsigned value = threadIdx.x, steps = 0;
    while (value != 1) {  // <-- here
        value = value % 2 ? 3 * value + 1 : value / 2;  // <-- here
        steps++;  // <-- here
    }
    y[threadIdx.x] = steps;
}

extern "C" __global__ void good(int* y) {
    unsigned value = threadIdx.x, steps = 0;
    while (value > 1) {
        value = value % 2 ? 3 * value + 1 : value / 2;
        steps++;
    }
    y[threadIdx.x] = steps;
}
