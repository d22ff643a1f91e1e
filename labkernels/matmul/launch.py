"""What the launchers of all versions of `matmul` share: the result, and the order of the kernels' arguments.

Every kernel takes (a, b, c, m, n, k, a_stride, b_stride ..., bias, residual, residual_stride), strides in elements between rows, and b's
between columns too where the kernel takes b by both.
"""

from __future__ import annotations

import torch

from labkernels.cuda.kernel import Kernel
from labkernels.matmul.reference import ACTIVATIONS


def activation_number(activation: str | None) -> int:
    """The template argument ACTIVATION (`enum class Activation` of include/epilogue.cuh)."""
    return list(ACTIVATIONS).index(activation)


def launch(kernel: Kernel, grid, block, a, b, b_strides, bias, residual, shared_mem: int = 0) -> torch.Tensor:
    """A new (m, n) written by `kernel`; nothing is launched where it is empty. `b_strides`: those of b that the kernel takes, in a tuple."""
    (m, k), n = a.shape, b.shape[1]
    c = torch.empty((m, n), dtype=a.dtype, device=a.device)
    if c.numel():
        residual_stride = 0 if residual is None else residual.stride(0)
        kernel(grid, block, (a, b, c, m, n, k, a.stride(0), *b_strides, bias, residual, residual_stride), shared_mem)
    return c
