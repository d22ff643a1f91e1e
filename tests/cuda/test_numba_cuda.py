"""Numba CUDA on tensors: in place, strides kept, on the simulator where there is no GPU, whatever was imported first."""

import subprocess
import sys

import pytest
import torch

from labkernels.cuda.numba_cuda import SIMULATED, as_numba, cuda, stream
from labkernels.errors import ArgumentError

DEVICE = "cpu" if SIMULATED else "cuda"


@cuda.jit
def double(x, y):
    i, j = cuda.grid(2)
    if i < x.shape[0] and j < x.shape[1]:
        y[i, j] = 2 * x[i, j]


def launch(x, y):
    double[(2, 2), (8, 8), stream(x)](as_numba(x), as_numba(y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32])
def test_kernel_writes_into_the_tensor(dtype):
    x = torch.arange(1, 100, device=DEVICE).to(dtype).reshape(9, 11)
    y = torch.zeros_like(x)
    launch(x, y)
    assert torch.equal(y, 2 * x)


def test_strides_are_kept():
    store = torch.zeros(9, 22, device=DEVICE)
    x = torch.randn(11, 9, device=DEVICE).t()
    launch(x, store[:, ::2])
    assert torch.equal(store[:, ::2], 2 * x)
    assert not store[:, 1::2].any()


def test_dtypes_that_numba_lacks_are_refused():
    with pytest.raises(ArgumentError, match="Numba has no bfloat16; convert the tensor, or write CUDA C"):
        as_numba(torch.zeros(3, dtype=torch.bfloat16, device=DEVICE))


@pytest.mark.parametrize("first", ["import numba", "import torch"])
def test_simulator_is_found_whatever_was_imported_first(first):
    script = f"{first}\nfrom labkernels.cuda.numba_cuda import SIMULATED, cuda\nimport numba\nassert bool(numba.config.ENABLE_CUDASIM) == SIMULATED"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.skipif(not SIMULATED, reason="needs a machine without a GPU")
def test_numba_cuda_imported_too_early_is_explained():
    script = "from numba import cuda\nimport labkernels.cuda.numba_cuda"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode != 0 and "numba.cuda was imported before labkernels.cuda.numba_cuda" in run.stderr


@pytest.mark.gpu
def test_launch_is_ordered_after_pytorchs_work_on_its_stream():
    side = torch.cuda.Stream()
    x, y = torch.zeros(16, 16, device=DEVICE), torch.zeros(16, 16, device=DEVICE)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        x.fill_(3)
        launch(x, y)
    side.synchronize()
    assert (y == 6).all()
