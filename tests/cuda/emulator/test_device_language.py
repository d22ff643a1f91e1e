"""printf, assert, traps, clocks, addresses, and headers that the emulator does not have."""

import pytest
import torch

from labkernels.cuda import Kernel
from labkernels.errors import CompileError, LaunchError
from tests.cuda.emulator.one_kernel import one_kernel

SOURCE = r"""#ifndef __CUDACC_RTC__     // NVRTC has no headers of the C library, and knows printf and assert without
#include <cuda_runtime.h>
#include <cstdio>
#include <cassert>
#endif

__global__ void prints(const float* x) {
    if (threadIdx.x == 3) printf("x[%d] = %.2f %s\n", threadIdx.x, x[threadIdx.x], "end");
    if (threadIdx.x == 4) ::printf("plain %llu\n", 1ull << 40);
}

__global__ void asserts(const int* x) {
    assert(x[threadIdx.x] < 50);
}

__global__ void traps(const int* x) { if (x[threadIdx.x] == 7) __trap(); }

__global__ void clocks(long long* y) {
    long long before = clock64();
    clock_t also_before = clock();
    for (int i = 0; i < 1000; i++) __nanosleep(10);
    y[0] = clock64() - before;
    y[1] = clock() >= also_before;
}

__global__ void addresses(float* global, int* y) {
    __shared__ float fixed[8];
    extern __shared__ float dynamic[];
    fixed[0] = dynamic[0] = global[0];
    y[0] = __isShared(dynamic); y[1] = __isShared(global); y[2] = __isGlobal(global); y[3] = __isGlobal(dynamic);
    y[4] = (int)(__cvta_generic_to_shared(dynamic + 5) - __cvta_generic_to_shared(dynamic));
    __builtin_assume(y[4] == 20);
}
"""


def test_printf_reaches_python(capfd):
    one_kernel(SOURCE, "prints")(1, 8, (torch.tensor([0, 0, 0, 1.25, 0, 0, 0, 0]),))
    assert capfd.readouterr().out == "x[3] = 1.25 end\nplain 1099511627776\n"


def test_a_failed_assertion_names_expression_and_line():
    x = torch.arange(64, dtype=torch.int32)
    kernel = Kernel(SOURCE, "asserts", filename="asserts.cu")
    with pytest.raises(LaunchError, match=r"asserts\.cu:13.*x\[threadIdx\.x\] < 50") as error:
        kernel(1, 64, (x,))
    assert "50" in str(error.value)
    kernel(1, 64, (x.clamp(max=49),))
    Kernel(SOURCE, "asserts", defines={"NDEBUG": 1})(1, 64, (x,))


def test_a_trap_ends_the_launch():
    with pytest.raises(LaunchError, match="__trap"):
        one_kernel(SOURCE, "traps")(1, 32, (torch.arange(32, dtype=torch.int32),))


def test_clocks_go_forward(device):
    y = torch.zeros(2, dtype=torch.int64, device=device)
    one_kernel(SOURCE, "clocks")(1, 1, (y,))
    assert y[0] > 0 and y[1] == 1


def test_addresses_know_their_space(device):
    y = torch.full((5,), -1, dtype=torch.int32, device=device)
    one_kernel(SOURCE, "addresses")(1, 1, (torch.ones(4, device=device), y), shared_mem=64)
    assert y.tolist() == [1, 0, 1, 0, 20]


@pytest.mark.parametrize("header", ["cuda/pipeline", "cuda/barrier", "cuda/atomic", "cuda_pipeline.h", "cub/cub.cuh", "curand_kernel.h"])
def test_an_unsupported_header_says_so(header):
    with pytest.raises(CompileError, match=f"<{header}> is not supported"):
        Kernel(f"#include <{header}>\n__global__ void f(int* y) {{ *y = 1; }}", "f")(1, 1, (torch.zeros(1, dtype=torch.int32),))


def test_headers_of_the_toolkit_may_be_included_again():
    source = "".join(f"#include <{name}>\n" for name in [
        "cuda_runtime.h", "device_launch_parameters.h", "vector_types.h", "cuda_fp16.h", "cuda_bf16.h", "cuda_fp8.h", "math_constants.h",
        "cooperative_groups.h", "math.h", "cmath", "cstdint", "stdio.h", "type_traits", "algorithm", "cfloat", "climits",
    ])
    y = torch.zeros(1)
    Kernel(source + "__global__ void f(float* y) { *y = fmaxf(FLT_EPSILON, std::abs(-2.5f)); }", "f")(1, 1, (y,))
    assert y.item() == 2.5
