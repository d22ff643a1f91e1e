"""Numba CUDA on any machine: `from labkernels.cuda.numba_cuda import as_numba, cuda, stream`.

    @cuda.jit
    def double(x, y):
        i = cuda.grid(1)
        if i < x.size:
            y[i] = 2 * x[i]

    double[blocks, threads, stream(x)](as_numba(x), as_numba(y))

Where there is no GPU, `cuda` is Numba's simulator: each thread is a Python thread, so keep sizes small. `numba_strict` adds to it what a
student needs: an index outside its array, a negative one too, is an error that names thread and block, and warps have their operations.
"""

from __future__ import annotations

import sys

import numba
import torch

from labkernels.errors import ArgumentError, LabKernelsError

SIMULATED = not torch.cuda.is_available()

# Numba decides between GPU and simulator once, when numba.cuda is first imported.
if SIMULATED and not numba.config.ENABLE_CUDASIM:
    if "numba.cuda" in sys.modules:
        raise LabKernelsError(
            "numba.cuda was imported before labkernels.cuda.numba_cuda, without its simulator, and this machine has no GPU; "
            "import labkernels.cuda.numba_cuda first, or set NUMBA_ENABLE_CUDASIM=1"
        )
    numba.config.ENABLE_CUDASIM = 1
numba.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # small grids are what a lab begins with

from numba import cuda  # noqa: E402

if SIMULATED:
    from labkernels.cuda import numba_strict

    numba_strict.install()

__all__ = ["SIMULATED", "as_numba", "cuda", "stream"]


def as_numba(tensor: torch.Tensor):
    """A Numba device array that shares `tensor`'s memory, strides kept: what the kernel writes, the tensor holds.

    Raises ArgumentError for a dtype that Numba does not have (bfloat16, float8), and for a tensor that is not where Numba runs.
    """
    if SIMULATED == tensor.is_cuda:
        place = "this machine has no GPU" if SIMULATED else "Numba runs on this machine's GPU"
        raise ArgumentError(f"as_numba: the tensor is on {tensor.device}; {place}")
    if tensor.dtype == torch.bfloat16 or tensor.dtype.itemsize == 1 and tensor.dtype.is_floating_point:
        raise ArgumentError(f"as_numba: Numba has no {str(tensor.dtype).removeprefix('torch.')}; convert the tensor, or write CUDA C++")
    if SIMULATED:
        from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

        return FakeCUDAArray(tensor.detach().numpy())
    return cuda.as_cuda_array(tensor.detach())


def stream(tensor: torch.Tensor):
    """PyTorch's current stream on the tensor's device, for a launch `kernel[grid, block, stream(x)](...)`."""
    return cuda.external_stream(torch.cuda.current_stream(tensor.device).cuda_stream) if tensor.is_cuda else 0
