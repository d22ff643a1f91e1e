"""The kernels of fp8_cast.cu as functions and torch operators, and the product of what they make.

Notable: fp8 operands must be dense along the axis that is summed over, another one in each product of a layer, so each cast writes both orders in one pass.
"""

from __future__ import annotations

from pathlib import Path

import torch

from labkernels.cuda.variants import ceil_div, kernel

FILE = Path(__file__).with_name("fp8_cast.cu")
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
TILE = 128  # of fp8_cast.cu
SMALLEST = 1e-12  # that a largest number is taken to be
# May the sums of a layer's products stay in the tensor cores, which keep some 14 bits of them? In the backward products that makes a step 4% faster; after
# 40 steps at 645M the mean loss of the last ten was 7.30 so, 7.14 with exact sums there, and 7.12 in bfloat16.
FAST = {"y": True, "dx": False, "dw": False}


@torch.library.custom_op("labkernels::fp8_cast", mutates_args=())
def fp8_cast(x: torch.Tensor, scale: torch.Tensor, e5m2: bool = False, turned: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """x (rows, cols), multiples of 16, times `scale` (one float32): as fp8 (rows, cols), and, if `turned`, as fp8 (cols, rows); else that is empty."""
    return cast(x, scale, e5m2, turned)


def cast(x: torch.Tensor, scale: torch.Tensor, e5m2: bool = False, turned: bool = True, largest: torch.Tensor | None = None):
    """`fp8_cast`; x's largest number is added to `largest`, one float32, if it is larger."""
    rows, cols = x.shape
    values, across = _outputs(x, e5m2, turned)
    if x.stride(1) != 1 or x.stride(0) * x.element_size() % 16 or x.data_ptr() % 16:
        x = x.contiguous()
    if values.numel():
        grid = ceil_div(cols, TILE), ceil_div(rows, TILE)
        args = (x, x.stride(0), scale, values.view(torch.uint8), across.view(torch.uint8) if turned else None, largest, rows, cols)
        kernel(FILE, "fp8_cast", x.dtype, str(e5m2).lower())(grid, 256, args)
    return values, across


@fp8_cast.register_fake
def _(x, scale, e5m2=False, turned=True):
    return _outputs(x, e5m2, turned)


def _outputs(x: torch.Tensor, e5m2: bool, turned: bool) -> tuple[torch.Tensor, torch.Tensor]:
    rows, cols = x.shape
    dtype = E5M2 if e5m2 else E4M3
    return x.new_empty((rows, cols), dtype=dtype), x.new_empty((cols, rows) if turned else (0,), dtype=dtype)


@torch.library.custom_op("labkernels::fp8_swiglu_backward", mutates_args=())
def fp8_swiglu_backward(grad: torch.Tensor, gate_up: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of silu(gate) * up from grad (rows, n), times `scale`, in e5m2: (rows, 2 n) and (2 n, rows). gate_up (rows, 2 n); multiples of 16."""
    return swiglu_gradient(grad, gate_up, scale)[:2]


def swiglu_gradient(grad, gate_up, scale, largest=None, hidden_scale=None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """`fp8_swiglu_backward`; with `hidden_scale` also silu(gate) * up times it, e4m3 (n, rows). `largest` as of `cast`."""
    grad, gate_up = grad.contiguous(), gate_up.contiguous()
    rows, n = grad.shape
    values, turned = _outputs(gate_up, True, True)
    hidden = None if hidden_scale is None else gate_up.new_empty((n, rows), dtype=E4M3)
    if values.numel():
        bytes_of = (None if hidden is None else hidden.view(torch.uint8), rows, n)
        args = (grad, gate_up, scale, values.view(torch.uint8), turned.view(torch.uint8), largest, hidden_scale, *bytes_of)
        backward = kernel(FILE, "fp8_swiglu_backward", grad.dtype, str(hidden is not None).lower())
        backward((ceil_div(n, TILE), ceil_div(rows, TILE)), 256, args)
    return values, turned, hidden


def swiglu(gate_up: torch.Tensor, scale: torch.Tensor, largest: torch.Tensor | None = None) -> torch.Tensor:
    """silu(gate) * up times `scale`, e4m3 (rows, n), of gate_up (rows, 2 n), contiguous, multiples of 16."""
    rows, n = gate_up.shape[0], gate_up.shape[1] // 2
    values = gate_up.new_empty((rows, n), dtype=E4M3)
    if values.numel():
        args = (gate_up, scale, values.view(torch.uint8), largest, rows, n)
        kernel(FILE, "fp8_swiglu", gate_up.dtype)((ceil_div(n, TILE), ceil_div(rows, TILE)), 256, args)
    return values


@fp8_swiglu_backward.register_fake
def _(grad, gate_up, scale):
    return _outputs(gate_up, True, True)


def matmul_fp8(a: torch.Tensor, b: torch.Tensor, inverse_a: torch.Tensor, inverse_b: torch.Tensor, fast: bool = True) -> torch.Tensor:
    """(inverse_a * a) @ (b * inverse_b), bfloat16: a (m, k) with dense rows, b (k, n) with dense columns. `fast`: sums stay in the tensor cores."""
    if a.is_cuda:
        return torch._scaled_mm(a, b, inverse_a, inverse_b, out_dtype=torch.bfloat16, use_fast_accum=fast)
    return ((a.float() * inverse_a) @ (b.float() * inverse_b)).to(torch.bfloat16)
