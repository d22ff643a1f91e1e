"""How each version of `ffn_backward` is launched, and on what it can run.

Each takes grad_out and x (tokens, embed), pre, w1, w2, an activation's name and whether biases are wanted, as
`labkernels.ffn.ffn_backward` does, and returns new contiguous dx, dw1, dw2, db1, db2.
"""

from __future__ import annotations

from pathlib import Path

import torch

from labkernels.cuda.variants import ceil_div, kernel
from labkernels.ffn.reference import activation_number
from labkernels.ffn.variants import widest
from labkernels.matmul import hopper
from labkernels.matmul.op import OP as MATMUL
from labkernels.matmul.split import V8
from labkernels.matmul.variants import v2_coalesced
from labkernels.operation import Variant

FOLDER = Path(__file__).parent
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def v1_plain(grad_out, x, pre, w1, w2, activation="gelu", bias=False) -> Gradients:
    return _backward(lambda a, b: v2_coalesced(a.contiguous(), b), grad_out, x, pre, w1, w2, activation, bias)


def v2_fused(grad_out, x, pre, w1, w2, activation="gelu", bias=False) -> Gradients:
    return _backward(product, grad_out, x, pre, w1, w2, activation, bias)


def _backward(multiply, grad_out, x, pre, w1, w2, activation, bias) -> Gradients:
    dh = multiply(grad_out, w2)
    dpre, h = activation_gradient(dh, pre, activation)
    del dh
    dw2 = multiply(grad_out.t(), h)
    del h
    dx, dw1 = multiply(dpre, w1), multiply(dpre.t(), x)
    none = x.new_empty(0)
    return dx, dw1, dw2, column_sums(dpre) if bias else none, column_sums(grad_out) if bias else none


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b by matmul's fastest version. Those for Hopper read an `a` with dense columns in place; for others it is copied."""
    if a.stride(1) != 1 and a.shape[1] > 1:
        if hopper.accepts(a, b) is None:
            return hopper.v7_hopper(a, b)
        if V8.accepts(a, b) is None:
            return V8(a, b)
        a = a.contiguous()
    return MATMUL.pick(a=a, b=b).fn(a=a, b=b)


def activation_gradient(dh: torch.Tensor, pre: torch.Tensor, activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of pre, laid out as pre, and h (tokens, ffn), from that of h: one walk over both."""
    pre = pre.contiguous()
    dpre, h, ffn = torch.empty_like(pre), torch.empty_like(dh), dh.shape[1]
    if h.numel():
        width = widest(ffn, dh, pre)
        name = "ffn_activation_gradient"
        gradient = kernel(FOLDER / "activate.cu", name, pre.dtype, activation_number(activation), width)
        gradient(ceil_div(h.numel(), 256 * width), 256, (dh, pre, dpre, h, h.numel(), ffn))
    return dpre, h


def column_sums(x: torch.Tensor) -> torch.Tensor:
    """The sums of the columns of x (rows, cols), in float32 and in the same order each time."""
    rows, cols = x.shape
    sums = torch.empty(cols, dtype=x.dtype, device=x.device)
    kernel(FOLDER / "activate.cu", "ffn_column_sums", x.dtype)(ceil_div(cols, 64), (32, 8), (x, sums, rows, cols, x.stride(0)))
    return sums


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_plain", v1_plain, "five plain products; one kernel for the slope and for h", FOLDER / "activate.cu"),
        Variant("v2_fused", v2_fused, "the fastest products, which read transposed gradients where they lie", FOLDER / "activate.cu"),
    )
}
