"""What the emulator must do as a GPU does: indices, shared memory, barriers, globals, templates, output, failure."""

import os
import signal
import threading
import time

import pytest
import torch

from labkernels.cuda import Kernel, emulator, isolated
from labkernels.errors import CompileError, LaunchError

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="CPU tensors run in the emulator on any machine, but this suite is long")

SOURCE = r"""
#include <cuda_fp16.h>

extern "C" __global__ void indices(int* out) {
    int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] = 1000000 * (int)blockIdx.z + 100000 * (int)blockIdx.y
        + 10000 * (int)blockIdx.x + 100 * (int)threadIdx.z + 10 * (int)threadIdx.y + (int)threadIdx.x;
}

extern "C" __global__ void reverse_static(const float* x, float* y) {
    __shared__ float tile[256];
    tile[threadIdx.x] = x[blockIdx.x * 256 + threadIdx.x];
    __syncthreads();
    y[blockIdx.x * 256 + threadIdx.x] = tile[255 - threadIdx.x];
}

template <typename T> __global__ void reverse_dynamic(const T* x, T* y, int n) {
    extern __shared__ __align__(16) unsigned char memory[];
    T* tile = reinterpret_cast<T*>(memory);
    for (int i = threadIdx.x; i < n; i += blockDim.x) tile[i] = x[i];
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = tile[n - 1 - i];
}

extern "C" __global__ void votes(int* out) {
    int i = threadIdx.x;
    int count = __syncthreads_count(i % 3 == 0);
    int all = __syncthreads_and(i < 1000), not_all = __syncthreads_and(i != 70);
    int any = __syncthreads_or(i == 70), none = __syncthreads_or(i > 1000);
    out[i] = count * 10000 + all * 1000 + not_all * 100 + any * 10 + none;
}

__constant__ float weights[4] = {1.f, 10.f, 100.f, 1000.f};
__device__ int launches = 0;
extern "C" __global__ void globals(float* out, int* count) {
    out[threadIdx.x] = weights[threadIdx.x % 4];
    if (threadIdx.x == 0) *count = atomicAdd(&launches, 1);
}

template <typename F> __device__ float twice(F f, float x) { return f(f(x)); }
struct Pair { float m; int n; };
extern "C" __global__ void lambdas(float* out, Pair pair, __half half, bool flag) {
    auto f = [=](float x) { return x * pair.m + pair.n; };
    out[threadIdx.x] = twice(f, (float)threadIdx.x) + __half2float(half) + (flag ? 0.5f : 0.f);
}

extern "C" __global__ void says(int n) {
    if (threadIdx.x < n) printf("thread %d of block %d: %.2f\n", threadIdx.x, blockIdx.x, 0.25f * threadIdx.x);
}
extern "C" __global__ void asserts(const int* x) { assert(x[threadIdx.x] >= 0); }
extern "C" __global__ void traps() { if (threadIdx.x == 5) __trap(); }
extern "C" __global__ void null_pointer(float* x) { if (threadIdx.x == 3) x[threadIdx.x] = 1.f; }
extern "C" __global__ void endless(int* x) { while (*(volatile int*)x == 0) { } }
extern "C" __global__ void endless_registers(int* x) { unsigned i = 1; while (i) i |= 1; *x = i; }
extern "C" __global__ void divide(int* x, int n) { x[threadIdx.x] = x[threadIdx.x] / n; }

extern "C" __global__ void flag_between_warps(volatile int* flag, int* out) {
    if (threadIdx.x < 32) { while (*flag == 0) { } }
    else *flag = 1;
    out[threadIdx.x] = *flag;
}
extern "C" __global__ void ticks(long long* out) {
    long long start = clock64();
    __nanosleep(100);
    out[threadIdx.x] = clock64() - start;
}
extern "C" __global__ void early_exit(int* out) {
    if (threadIdx.x >= 40) return;
    __syncthreads();
    out[threadIdx.x] = __popc(__activemask());
}
"""


def kernel(name, **options):
    return Kernel(SOURCE, name, filename="test.cu", **options)


def test_indices_of_grids_and_blocks_in_three_axes():
    out = torch.full((2 * 3 * 4 * 24,), -1, dtype=torch.int32)
    kernel("indices")((4, 3, 2), (2, 3, 4), (out,))
    got = out.reshape(2, 3, 4, 4, 3, 2)
    for bz, by, bx, tz, ty, tx in [(0, 0, 0, 0, 0, 0), (1, 2, 3, 3, 2, 1), (1, 0, 2, 0, 1, 1)]:
        assert got[bz, by, bx, tz, ty, tx] == 1000000 * bz + 100000 * by + 10000 * bx + 100 * tz + 10 * ty + tx
    assert got.unique().numel() == got.numel()


def test_static_shared_memory_belongs_to_the_block():
    x = torch.randn(64 * 256)
    y = torch.full_like(x, float("nan"))
    kernel("reverse_static")(64, 256, (x, y))
    assert torch.equal(y.reshape(64, 256), x.reshape(64, 256).flip(1))


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "float"), (torch.float16, "__half"), (torch.int64, "long long")])
def test_dynamic_shared_memory_of_any_type_and_more_than_48_kb(dtype, name):
    x = torch.randint(-1000, 1000, (25_000 if dtype is torch.float32 else 7_001,)).to(dtype)
    y = torch.zeros_like(x)
    kernel(f"reverse_dynamic<{name}>")(1, 160, (x, y, x.numel()), shared_mem=x.numel() * x.element_size())
    assert torch.equal(y, x.flip(0))


def test_barriers_count_and_vote():
    out = torch.zeros(100, dtype=torch.int32)
    kernel("votes")(1, 100, (out,))
    assert out.unique().tolist() == [34 * 10000 + 1000 + 0 + 10 + 0]


def test_device_globals_live_as_long_as_the_kernel_and_constants_have_their_values():
    globals_ = kernel("globals")
    counts = []
    for _ in range(3):
        out, count = torch.zeros(8), torch.zeros(1, dtype=torch.int32)
        globals_(1, 8, (out, count))
        counts.append(count.item())
    assert counts == [counts[0], counts[0] + 1, counts[0] + 2]
    assert out.tolist() == [1, 10, 100, 1000] * 2


def test_lambdas_and_structs_halves_and_bools_by_value():
    out = torch.zeros(5)
    pair = torch.tensor([2.0]).numpy().tobytes() + torch.tensor([3], dtype=torch.int32).numpy().tobytes()
    kernel("lambdas")(1, 5, (out, pair, 0.25, True))
    assert out.tolist() == [4 * i + 9 + 0.75 for i in range(5)]


def test_printf_reaches_python(capsys):
    kernel("says")(2, 4, (2,))
    lines = sorted(capsys.readouterr().out.splitlines())
    assert lines == [f"thread {t} of block {b}: {0.25 * t:.2f}" for t in (0, 1) for b in (0, 1)]


def test_assert_names_expression_place_and_thread():
    x = torch.ones(64, dtype=torch.int32)
    kernel("asserts")(1, 64, (x,))
    x[37] = -1
    with pytest.raises(LaunchError, match=r"x\[threadIdx.x\] >= 0.*thread 37"):
        kernel("asserts")(1, 64, (x,))


def test_trap_ends_the_launch():
    with pytest.raises(LaunchError, match="thread 5"):
        kernel("traps")(1, 32, ())


@pytest.mark.parametrize("context", [None, isolated])
def test_a_null_pointer_is_an_exception_with_line_and_thread(context):
    null_pointer = kernel("null_pointer")
    line = 1 + SOURCE[: SOURCE.index("void null_pointer")].count("\n")
    with pytest.raises(LaunchError, match=rf"null pointer.*thread 3, test.cu line {line}\)"):
        if context:
            with context():
                null_pointer(1, 32, (None,))
        else:
            null_pointer(1, 32, (None,))
    x = torch.zeros(32)
    null_pointer(1, 32, (x,))
    assert x[3] == 1  # and the next launch is as good as any


def test_integer_division_by_zero_is_an_exception():
    x = torch.arange(32, dtype=torch.int32)
    with pytest.raises(LaunchError, match="division by zero"):
        kernel("divide")(1, 32, (x, 0))


@pytest.mark.parametrize("name", ["endless", "endless_registers"])
def test_an_endless_loop_ends_at_the_time_limit(name):
    x = torch.zeros(4, dtype=torch.int32)
    endless = kernel(name)
    built = emulator.build(endless.source, name)
    values = endless.prepare(1, 4, (x,))[2]
    start = time.monotonic()
    with pytest.raises(LaunchError, match="time limit"):
        built.launch((1, 1, 1), (4, 1, 1), values, time_limit_s=0.3)
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("context", [None, isolated])
def test_an_interrupt_stops_emulated_code_within_a_second(context):
    x = torch.zeros(4, dtype=torch.int32)
    endless = kernel("endless")
    endless.prepare(1, 4, (x,))
    if context:  # the child runs already, as in any but the first launch
        with context():
            kernel("indices")(1, 4, (x,))
        x.zero_()
    interrupt = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    interrupt.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        if context:
            with context():
                endless(1, 4, (x,))
        else:
            endless(1, 4, (x,))
    assert time.monotonic() - start < 2
    kernel("indices")(1, 4, (x,))
    assert x.tolist() == [0, 1, 2, 3]


def test_a_warp_that_spins_lets_the_other_one_set_the_flag():
    flag, out = torch.zeros(1, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    kernel("flag_between_warps")(1, 64, (flag, out))
    assert out.tolist() == [1] * 64


def test_the_clock_runs():
    out = torch.full((4,), -1, dtype=torch.int64)
    kernel("ticks")(1, 4, (out,))
    assert (out >= 0).all()


def test_threads_that_have_left_count_as_arrived_as_on_a_gpu():
    out = torch.zeros(64, dtype=torch.int32)
    kernel("early_exit")(1, 64, (out,))
    assert out.tolist() == [32] * 32 + [8] * 8 + [0] * 24


def test_launches_from_several_threads_do_not_meet():
    x = torch.randn(8 * 256)
    reverse, results = kernel("reverse_static"), [None] * 6

    def launch(i):
        y = torch.zeros_like(x)
        for _ in range(20):
            reverse(8, 256, (x, y))
        results[i] = y

    threads = [threading.Thread(target=launch, args=(i,)) for i in range(len(results))]
    [t.start() for t in threads]
    [t.join() for t in threads]
    wanted = x.reshape(8, 256).flip(1).reshape(-1)
    assert all(torch.equal(y, wanted) for y in results)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('asm volatile("mov.u32 %0, %laneid;" : "=r"(x[0]));', "inline PTX"),
        ("child<<<1, 1>>>();", "dynamic parallelism"),
        ("float f = tex2D<float>(t, 0.f, 0.f);", "textures"),
    ],
)
def test_what_cannot_run_here_says_so_at_its_line(text, message):
    source = "extern \"C\" __global__ void f(unsigned* x) {\n  // asm(\n  " + text + "\n}\n"
    with pytest.raises(CompileError, match=message) as caught:
        Kernel(source, "f", filename="In[9]", first_line=2)(1, 1, (torch.zeros(1, dtype=torch.uint32),))
    assert caught.value.diagnostics[0].line == 4 and caught.value.diagnostics[0].file == "In[9]"


def test_inline_ptx_beside_its_meaning_in_cpp_is_accepted():
    source = """
    __device__ unsigned lane() {
    #ifndef LK_EMULATOR
        unsigned value; asm("mov.u32 %0, %laneid;" : "=r"(value)); return value;
    #else
        return lk::lane();
    #endif
    }
    __global__ void f(unsigned* x) { x[threadIdx.x] = lane(); }"""
    x = torch.zeros(64, dtype=torch.uint32)
    Kernel(source, "f")(1, 64, (x,))
    assert x.tolist() == [*range(32), *range(32)]


def test_a_kernel_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(CompileError, match=r"missing.*has: indices, reverse_static"):
        kernel("missing")(1, 1, ())
