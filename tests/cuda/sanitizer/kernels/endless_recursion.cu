// Out of bounds: a recursion without an end leaves the stack.
//   Mistake   The recursion stops at 0, and fibonacci(n - 2) steps over it from 1 to -1.
//   Why       A thread's stack is about 1 KB on a GPU unless more is asked for. Behind it lies another thread's.
//   Fix       Stop at everything below 2.
//
// expect: out_of_bounds
// launch: grid=1 block=32 args=y:int32[32]
// block: 0
// threads: 1
// result: y = torch.tensor([0, 1, 1, 2, 3, 5, 8, 13], dtype=torch.int32).repeat(4)

__device__ __noinline__ int bad_fibonacci(int n) {  // <-- here
    if (n == 0) return 0;  // <-- here
    return bad_fibonacci(n - 1) + bad_fibonacci(n - 2);  // <-- here
}

__device__ __noinline__ int good_fibonacci(int n) {
    if (n < 2) return n;
    return good_fibonacci(n - 1) + good_fibonacci(n - 2);
}

extern "C" __global__ void bad(int* y) {
    int i = threadIdx.x;
    y[i] = bad_fibonacci(i % 8);
}

extern "C" __global__ void good(int* y) {
    int i = threadIdx.x;
    y[i] = good_fibonacci(i % 8);
}
