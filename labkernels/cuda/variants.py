"""What the operations' `variants.py` share: kernels by file and name, and what they read off the tensors they are given."""

from __future__ import annotations

import functools
import struct
from pathlib import Path

import torch

from labkernels.cuda.kernel import Kernel
from labkernels.errors import ArgumentError

SIMULATED_STEPS = 1 << 17  # of a Numba kernel without a GPU: about a second
_C_TYPES = {torch.float32: "float", torch.bfloat16: "__nv_bfloat16", torch.float16: "__half"}


@functools.cache
def kernel(path: Path, name: str, *template_arguments) -> Kernel:
    """The kernel `name`, or its instantiation with `template_arguments` (dtypes and ints), made once."""
    arguments = ", ".join(c_type(a) if isinstance(a, torch.dtype) else str(a) for a in template_arguments)
    return Kernel(path, f"{name}<{arguments}>" if arguments else name)


def c_type(dtype: torch.dtype) -> str:
    """The C++ type of the kernels' elements of this dtype; ArgumentError for a dtype that they do not take."""
    if dtype not in _C_TYPES:
        raise ArgumentError(f"these kernels take {', '.join(map(str, _C_TYPES))}, got {dtype}")
    return _C_TYPES[dtype]


def numba_refusal(tensor: torch.Tensor, steps: int) -> str | None:
    """Why a Numba kernel cannot take these inputs, or None. `steps` is how often its threads run their innermost loop in all."""
    if tensor.dtype != torch.float32:
        return "the Numba kernel takes float32"
    if tensor.device.type == "cpu" and torch.cuda.is_available():
        return "Numba runs on the GPU of this machine, not on CPU tensors"
    if tensor.device.type == "cpu" and steps > SIMULATED_STEPS:
        return f"Numba's simulator would take seconds: {steps} steps, more than {SIMULATED_STEPS}"
    return None


def hopper_refusal(tensor: torch.Tensor) -> str | None:
    """Why a kernel for Hopper (sm_90a) cannot take a tensor that lies there, or None. The emulator plays a Hopper."""
    if tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) != (9, 0):
        return f"runs on Hopper, not on {torch.cuda.get_device_name(tensor.device)}"
    return None


def processors(tensor: torch.Tensor) -> int:
    """How many blocks of a persistent kernel to launch: the multiprocessors of the GPU where the tensor lies; 2 in the emulator."""
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 2


def ceil_div(a: int, b: int) -> int:
    """How many groups of `b` it takes for `a`."""
    return -(-a // b)


def vector_width(elements: int, *tensors: torch.Tensor) -> int:
    """`elements` if every row of these tensors can be read that many at a time, else 1.

    It can where the last axis is contiguous and a multiple of `elements` long, and each row lies on a multiple of their size.
    """
    for tensor in tensors:
        size = elements * tensor.element_size()
        rows = [stride * tensor.element_size() for stride, length in zip(tensor.stride()[:-1], tensor.shape[:-1]) if length > 1]
        contiguous = tensor.stride(-1) == 1 and tensor.shape[-1] % elements == 0
        if not contiguous or any(distance % size for distance in (tensor.data_ptr(), *rows)):
            return 1
    return elements


def strides(tensor: torch.Tensor) -> bytes:
    """The kernels' `Strides` (include/strides.cuh) of a (batch, heads, seq, head_dim) tensor."""
    return struct.pack("<3q", *tensor.stride()[:3])
