"""A linear layer and a SwiGLU network in fp8 with delayed scales, as torch operators with gradients.

    labkernels::fp8_linear(x, x8, x8_turned, weight, rows, fresh, keep) -> (y, x_turned, w_turned)
    labkernels::fp8_ffn(x, x8, x8_turned, w1, w2, rows, fresh, keep) -> (y, x_turned, w1_turned, gate_up, w2_turned)
    and NAME_backward. Where x8 is given, x is there for its gradient's sake.

`rows` and `fresh` are a layer's Sites (fp8_scales.py). The kernels write the largest number that they saw into `rows`, which the schemas do not tell: nobody
reads it before the step is over. Without `keep`, as in an evaluation, what is only for the backward pass is not made, and nothing is left behind.

Notable: between two products the numbers are written in 8 bits by the kernel that makes them, and read once. The hidden layer is not kept for the gradient
of the second weight: the backward pass has gate and up in registers anyway. Sums of the backward products: see FAST.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from labkernels.llm.training import fp8_cast as fp8
from labkernels.llm.training.fp8_cast import E4M3, E5M2, FAST, SMALLEST
from labkernels.llm.training.fp8_scales import INVERSE, LARGEST, SCALE, Sites
from labkernels.torch_extension.operators import LIBRARY, define

LINEAR_SITES = (E4M3, E4M3, E5M2)  # x, weight, gradient of the result
FFN_SITES = (E4M3, E4M3, E4M3, E4M3, E5M2, E5M2)  # x, w1, hidden, w2, gradient of gate and up, gradient of the result
CHUNK = 4096  # tokens, where a tensor is looked at that is not there as a whole
SCHEMAS = {
    "fp8_linear": "(Tensor x, Tensor? x8, Tensor? x8_turned, Tensor weight, Tensor rows, Tensor fresh, bool keep) "
    "-> (Tensor y, Tensor x_turned, Tensor w_turned)",
    "fp8_linear_backward": "(Tensor grad, Tensor x_turned, Tensor w_turned, Tensor rows, Tensor fresh) -> (Tensor dx, Tensor dw)",
    "fp8_ffn": "(Tensor x, Tensor? x8, Tensor? x8_turned, Tensor w1, Tensor w2, Tensor rows, Tensor fresh, bool keep) "
    "-> (Tensor y, Tensor x_turned, Tensor w1_turned, Tensor gate_up, Tensor w2_turned)",
    "fp8_ffn_backward": "(Tensor grad, Tensor x_turned, Tensor w1_turned, Tensor gate_up, Tensor w2_turned, Tensor rows, Tensor fresh) "
    "-> (Tensor dx, Tensor dw1, Tensor dw2)",
}


class Cast(NamedTuple):
    """What has been brought to fp8 by who made it: `values` (tokens, n) and `turned` (n, tokens). `carrier` has the shape (..., n) and the dtype of what it
    would be in 16 bits, one number of memory, and brings its gradient back."""

    carrier: torch.Tensor
    values: torch.Tensor
    turned: torch.Tensor


def linear(x: torch.Tensor | Cast, weight: torch.Tensor, sites: Sites) -> torch.Tensor:
    """x (..., in) weight^T, (..., out)."""
    x = x if isinstance(x, Cast) else Cast(x, None, None)
    rows = x.carrier.flatten(0, -2), *x[1:]
    return torch.ops.labkernels.fp8_linear(*rows, weight, *sites, torch.is_grad_enabled())[0].view(*x.carrier.shape[:-1], -1)


def feed_forward(x: torch.Tensor | Cast, w1: torch.Tensor, w2: torch.Tensor, sites: Sites) -> torch.Tensor:
    """(silu(gate) * up) w2^T, where x w1^T is all gates, then all ups."""
    x = x if isinstance(x, Cast) else Cast(x, None, None)
    rows = x.carrier.flatten(0, -2), *x[1:]
    return torch.ops.labkernels.fp8_ffn(*rows, w1, w2, *sites, torch.is_grad_enabled())[0].view(x.carrier.shape)


def fp8_linear(x, x8, x8_turned, weight, rows, fresh, keep):
    x8, x_turned = _cast(x, rows[0], fresh, keep) if x8 is None else (x8, x.new_empty(0, dtype=E4M3))
    w8, w_turned = _cast(weight, rows[1], fresh, keep)
    return _product(x8, w8, rows[0], rows[1]), x_turned, w_turned


def fp8_linear_backward(grad, x_turned, w_turned, rows, fresh):
    g8, g_turned = _cast(grad, rows[2], fresh, True, E5M2)
    return _product(g8, w_turned, rows[2], rows[1], "dx"), _product(g_turned, x_turned, rows[2], rows[0], "dw")


def fp8_ffn(x, x8, x8_turned, w1, w2, rows, fresh, keep):
    of_x, of_w1, of_hidden, of_w2, *_ = rows.unbind()
    x8, x_turned = _cast(x, of_x, fresh, keep) if x8 is None else (x8, x.new_empty(0, dtype=E4M3))
    w1_8, w1_turned = _cast(w1, of_w1, fresh, keep)
    gate_up = _product(x8, w1_8, of_x, of_w1)  # (tokens, 2 n)
    if fresh:
        settle(of_hidden, E4M3, (_hidden(each) for each in gate_up.split(CHUNK)))
    hidden = fp8.swiglu(gate_up, of_hidden[SCALE], of_hidden[LARGEST] if keep else None)
    w2_8, w2_turned = _cast(w2, of_w2, fresh, keep)
    return _product(hidden, w2_8, of_hidden, of_w2), x_turned, w1_turned, gate_up if keep else x.new_empty(0), w2_turned


def fp8_ffn_backward(grad, x_turned, w1_turned, gate_up, w2_turned, rows, fresh):
    of_x, of_w1, of_hidden, of_w2, of_inner, of_grad = rows.unbind()
    g8, g_turned = _cast(grad, of_grad, fresh, True, E5M2)
    inner = _product(g8, w2_turned, of_grad, of_w2, "dx")  # the gradient of the hidden layer
    if fresh:
        settle(of_inner, E5M2, (_gate_up_gradient(*each) for each in zip(inner.split(CHUNK), gate_up.split(CHUNK))))
    p8, p_turned, h_turned = fp8.swiglu_gradient(inner, gate_up, of_inner[SCALE], of_inner[LARGEST], of_hidden[SCALE])
    del inner
    dw2 = _product(g_turned, h_turned, of_grad, of_hidden, "dw")
    return _product(p8, w1_turned, of_inner, of_w1, "dx"), _product(p_turned, x_turned, of_inner, of_x, "dw"), dw2


def _cast(x, row, fresh, keep, dtype=E4M3):
    """In fp8 as it lies, and, if `keep`, turned."""
    if fresh:
        settle(row, dtype, (x,))
    return fp8.cast(x, row[SCALE], dtype == E5M2, keep, row[LARGEST] if keep else None)


def _product(a, b, row_a, row_b, which="y"):
    """a (m, k), b (n, k) -> (m, n) bfloat16."""
    return fp8.matmul_fp8(a, b.t(), row_a[INVERSE], row_b[INVERSE], FAST[which])


def settle(row, dtype, pieces) -> None:
    """A scale from the tensor itself. By `.data`: autograd shall not take it for a change of what it has saved."""
    row = row.data
    largest = torch.stack([piece.abs().amax() for piece in pieces]).amax().float().clamp(min=SMALLEST)
    row[SCALE] = torch.finfo(dtype).max / largest
    row[INVERSE] = row[SCALE].reciprocal()


def _hidden(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def _gate_up_gradient(grad, gate_up) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    slope = torch.ops.aten.silu_backward(grad * up, gate).abs().amax()
    return torch.maximum(slope, (grad * torch.nn.functional.silu(gate)).abs().amax())


def fp8_linear_fake(x, x8, x8_turned, weight, rows, fresh, keep):
    return x.new_empty(x.shape[0], weight.shape[0]), _turned(x, keep and x8 is None), _turned(weight, keep)


def fp8_linear_backward_fake(grad, x_turned, w_turned, rows, fresh):
    return grad.new_empty(grad.shape[0], w_turned.shape[0]), grad.new_empty(grad.shape[1], x_turned.shape[0])


def fp8_ffn_fake(x, x8, x8_turned, w1, w2, rows, fresh, keep):
    gate_up = x.new_empty((x.shape[0], w1.shape[0]) if keep else (0,))
    return x.new_empty(x.shape[0], w2.shape[0]), _turned(x, keep and x8 is None), _turned(w1, keep), gate_up, _turned(w2, keep)


def fp8_ffn_backward_fake(grad, x_turned, w1_turned, gate_up, w2_turned, rows, fresh):
    embed, hidden = x_turned.shape[0], w2_turned.shape[0]
    return grad.new_empty(grad.shape[0], embed), grad.new_empty(2 * hidden, embed), grad.new_empty(grad.shape[1], hidden)


def _turned(x, keep):
    return x.new_empty((x.shape[1], x.shape[0]) if keep else (0,), dtype=E4M3)


def _save(ctx, inputs, output) -> None:
    _, x8, x8_turned, *_, rows, fresh, _ = inputs
    _, x_turned, *others = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x_turned if x8 is None else x8_turned, *others, rows, fresh)


def _linear_gradient(ctx, grad, *_):
    dx, dw = torch.ops.labkernels.fp8_linear_backward(grad.contiguous(), *ctx.saved_tensors)
    return dx, None, None, dw, None, None, None


def _ffn_gradient(ctx, grad, *_):
    dx, dw1, dw2 = torch.ops.labkernels.fp8_ffn_backward(grad.contiguous(), *ctx.saved_tensors)
    return dx, None, None, dw1, dw2, None, None, None


for _name, _schema in SCHEMAS.items():
    define(_name, _schema, globals()[_name], globals()[f"{_name}_fake"])
torch.library.register_autograd("labkernels::fp8_linear", _linear_gradient, setup_context=_save, lib=LIBRARY)
torch.library.register_autograd("labkernels::fp8_ffn", _ffn_gradient, setup_context=_save, lib=LIBRARY)
