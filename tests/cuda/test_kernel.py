"""`Kernel` checks a launch before it happens, and sends it where the tensors live."""

import struct
import subprocess
import sys

import pytest
import torch

from labkernels.cuda import Kernel, Source, emulator, gpu, kernel
from labkernels.errors import ArgumentError, CompileError

SCALE = """
extern "C" __global__ void scale(const float* x, float* y, float factor, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] * factor;
}
"""


@pytest.fixture
def launches(monkeypatch):
    """Emulated launches, recorded and not run; the signature is read from a made-up build."""
    found = []

    class Built:
        cluster = None
        signature = "void (float const*, float*, float, int)"
        parameter_sizes = (8, 8, 4, 4)

    monkeypatch.setattr(emulator, "build", lambda source, name: Built())
    monkeypatch.setattr(emulator, "run", lambda *launch: found.append(launch))
    monkeypatch.setattr(kernel, "compile_kernel", None)  # the CPU path never needs NVRTC
    return found


def cpu_args(n=33):
    return torch.randn(n), torch.empty(n), 2.5, n


def test_cpu_tensors_go_to_the_emulator_as_bytes(launches):
    scale = Kernel(SCALE, "scale")
    args = cpu_args()
    scale((2, 3), 64, args, shared_mem=128)
    launched, grid, block, given, values, shared_mem, cluster = launches[0]
    assert launched is scale and given is args
    assert (grid, block, shared_mem, cluster) == ((2, 3, 1), (64, 1, 1), 128, (1, 1, 1))
    x, y = (value.data_ptr().to_bytes(8, "little") for value in args[:2])
    assert values == [x, y, b"\0\0\x20\x40", b"\x21\0\0\0"]


def test_the_emulator_really_runs_it():
    x, y, _, n = cpu_args(1000)
    Kernel(SCALE, "scale")(-(-n // 128), 128, (x, y, 2.5, n))
    assert torch.equal(y, x * 2.5)


def test_templates_defines_and_files(tmp_path):
    (tmp_path / "size.cuh").write_text("constexpr int per_thread = PER_THREAD;")
    path = tmp_path / "add.cu"
    path.write_text(
        '#include "size.cuh"\ntemplate <class T, int plus> __global__ void add(T* x) {\n'
        "for (int i = 0; i < per_thread; i++) x[threadIdx.x * per_thread + i] += plus; }"
    )
    for given in (path, str(path), Source.from_file(path, defines={"PER_THREAD": 3})):
        x = torch.arange(96, dtype=torch.float64)
        add = Kernel(given, "add<double, 5>", defines=None if isinstance(given, Source) else {"PER_THREAD": 3})
        add(1, 32, [x])
        assert torch.equal(x, torch.arange(96, dtype=torch.float64) + 5)
        assert add.name == "add<double, 5>" and str(path) in repr(add)


def test_the_signature_names_the_parameters():
    assert [str(p) for p in Kernel(SCALE, "scale").signature] == ["const float* x", "float* y", "float factor", "int n"]


def test_compile_errors_name_the_cells_line():
    bad = Kernel(SCALE.replace("factor;", "factr;"), "scale", filename="In[3]", first_line=2)
    with pytest.raises(CompileError) as caught:
        bad(1, 32, cpu_args())
    assert [(d.file, d.line) for d in caught.value.diagnostics if d.severity == "error"] == [("In[3]", 5)]
    with pytest.raises(CompileError, match=r"In\[3\], line 5: identifier \"factr\" is undefined"):
        bad.resources("sm_80")


@pytest.mark.parametrize(
    "grid, block, message",
    [
        (0, 32, "grid 0: x must be 1 to 2147483647, got 0 .an empty tensor?"),
        (-1, 32, "grid -1: x must be 1"),
        (2**31, 32, "grid 2147483648: x must be 1 to 2147483647"),
        ((1, 65536), 32, ".* y must be 1 to 65535, got 65536"),
        ((1, 1, 65536), 32, ".* z must be 1 to 65535, got 65536"),
        (1, 1025, "block 1025: x must be 1 to 1024"),
        (1, (1, 1, 65), ".* z must be 1 to 64, got 65"),
        (1, (64, 32), r"block \(64, 32, 1\) has 2048 threads, a block has at most 1024"),
        (4 / 2, 32, "grid is made of ints, got 2.0 .// divides"),
        (1, (32, 1.0), "block is made of ints, got 1.0"),
        (True, 32, "grid is made of ints, got True"),
        ((), 32, "grid is an int or up to three of them"),
        ((1, 1, 1, 1), 32, "grid is an int or up to three of them"),
        (1, "32", "block is made of ints, got '32'"),
    ],
)
def test_grids_and_blocks_that_no_gpu_takes_are_refused(launches, grid, block, message):
    with pytest.raises(ArgumentError, match=f"scale: {message}"):
        Kernel(SCALE, "scale")(grid, block, cpu_args())
    assert not launches


def test_the_largest_blocks_and_grids_pass(launches):
    import numpy as np

    for grid, block in [(2**31 - 1, 1024), ((1, 65535, 65535), (4, 4, 64)), (np.int64(3), (1, 1024))]:
        Kernel(SCALE, "scale")(grid, block, cpu_args())
    assert len(launches) == 3 and launches[2][1] == (3, 1, 1)


@pytest.mark.parametrize(
    "change, message",
    [
        ({0: torch.randn(33, dtype=torch.float64)}, r"args\[0\], const float\* x: takes float32, got a tensor of float64"),
        ({1: torch.empty(33, device="meta")}, r"args\[1\], float\* y: the tensor is on meta, others are on cpu"),
        ({2: torch.tensor(2.5)}, r"args\[2\], float factor: takes a Python float, got a tensor"),
        ({3: 33.0}, r"args\[3\], int n: takes an int, got a float"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_launched(launches, change, message):
    args = [change.get(i, arg) for i, arg in enumerate(cpu_args())]
    with pytest.raises(ArgumentError, match=f"scale: {message}"):
        Kernel(SCALE, "scale")(1, 64, args)
    assert not launches


def test_arguments_that_are_no_tuple_and_wrong_counts_are_refused(launches):
    scale = Kernel(SCALE, "scale")
    with pytest.raises(ArgumentError, match=r"args is a tuple of arguments, got one Tensor; write \(x,\)"):
        scale(1, 32, torch.randn(4))
    with pytest.raises(ArgumentError, match=r"takes 4 arguments, got 2: scale\(const float\* x, float\* y, float factor, int n\)"):
        scale(1, 32, cpu_args()[:2])
    with pytest.raises(ArgumentError, match=r"args\[0\] is on meta; kernels run on cuda and cpu tensors"):
        scale(1, 32, (torch.empty(3, device="meta"), torch.empty(3), 1.0, 3))
    for shared_mem, message in ((-1, "number of bytes, got -1"), (0.5, "made of ints, got 0.5")):
        with pytest.raises(ArgumentError, match=message):
            scale(1, 32, cpu_args(), shared_mem=shared_mem)
    assert not launches


def test_without_tensors_a_machine_without_a_gpu_emulates(launches, monkeypatch):
    monkeypatch.setattr(gpu, "available", lambda: False)
    Kernel(SCALE, "scale")(1, 32, (None, None, 1.0, 0))
    assert launches[0][4][0] == bytes(8)


@pytest.mark.parametrize(
    "source, name, message",
    [
        ("missing.cu", "f", "cannot read the CUDA source file missing.cu"),
        (SCALE, "", "name of a __global__ function"),
        (SCALE, None, "name of a __global__ function"),
        (SCALE, "<float>", "name of a __global__ function"),
        (None, "f", "a kernel's source is CUDA C"),
        (b"x", "f", "a kernel's source is CUDA C"),
    ],
)
def test_a_kernel_that_cannot_be_is_refused_at_once(source, name, message):
    with pytest.raises(ArgumentError, match=message):
        Kernel(source, name)


def test_definitions_must_be_names():
    with pytest.raises(ArgumentError, match="'2N' is not a name"):
        Kernel(SCALE, "scale", defines={"2N": 1})
    assert Kernel(SCALE, "scale", defines={"B": True, "A": False, "C": 0.5}).source.defines == (("A", "0"), ("B", "1"), ("C", "0.5"))


def test_making_a_kernel_compiles_nothing(launches, monkeypatch):
    monkeypatch.setattr(emulator, "build", None)
    Kernel("__global__ void f() { this is no C++ }", "f")


def test_importing_the_package_loads_no_compiler():
    check = "import sys, labkernels.cuda; bad = {'cupy', 'cuda.core', 'numba'} & set(sys.modules); assert not bad, bad"
    subprocess.run([sys.executable, "-c", check], check=True)


EVERY_TYPE = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
struct Odd { char a; double b; short c; };
extern "C" __global__ void every(double* out, bool a, char b, unsigned short c, __half d, __nv_bfloat16 e, float f, long long g, float3 h,
                                 Odd i, unsigned char j, double k, int* null, float4 l) {
    double values[] = {(double)a, (double)b, (double)c, (double)__half2float(d), (double)__bfloat162float(e), f, (double)g, h.x, h.y, h.z,
                       (double)i.a, i.b, (double)i.c, (double)j, k, (double)(null == nullptr), l.x, l.w};
    for (int n = 0; n < 18; n++) out[n] = values[n];
}
"""
ODD = struct.pack("<b7xdh6x", 7, 0.5, -1)
EVERY_VALUE = (True, -5, 65535, 0.5, -3.0, 0.25, -(2**40), (1, 2, 3), ODD, 200, 1e300, None, (9, 0, 0, 8))
EVERY_RESULT = [1, -5, 65535, 0.5, -3, 0.25, -(2**40), 1, 2, 3, 7, 0.5, -1, 200, 1e300, 1, 9, 8]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_type_of_parameter_arrives(device):
    out = torch.full((18,), float("nan"), dtype=torch.float64, device=device)
    Kernel(EVERY_TYPE, "every")(1, 1, (out, *EVERY_VALUE))
    assert out.tolist() == EVERY_RESULT
