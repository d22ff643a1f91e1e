"""The operators' gradients: attention's by attention_backward, matmul's by more matmuls."""

from __future__ import annotations

import torch

from labkernels.errors import ArgumentError
from labkernels.torch_extension.operators import LIBRARY

ops = torch.ops.labkernels
_slope = torch.ops.aten
ACTIVATION_GRADIENTS = {  # (gradient of the result, what the activation was applied to)
    "relu": lambda grad, x: _slope.threshold_backward(grad, x, 0),
    "gelu": lambda grad, x: _slope.gelu_backward(grad, x),
    "gelu_tanh": lambda grad, x: _slope.gelu_backward(grad, x, approximate="tanh"),
    "silu": lambda grad, x: _slope.silu_backward(grad, x),
}


def attention_saves(ctx, inputs, output) -> None:
    q, k, v, *options, mask = inputs
    if mask is not None and mask.requires_grad:
        raise ArgumentError("attention: mask requires a gradient, and gets none here; pass a detached mask")
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, mask)
    ctx.options = options


def attention_gradient(ctx, grad, _):
    *tensors, mask = ctx.saved_tensors
    return *ops.attention_backward(grad, *tensors, *ctx.options, mask), *[None] * 5


def matmul_saves(ctx, inputs, output) -> None:
    a, b, bias, activation, residual = inputs
    ctx.save_for_backward(a, b, bias)
    ctx.activation = activation


def matmul_gradient(ctx, grad):
    """The gradient goes past the residual, through the activation (what it was applied to is computed again), then to a, b and bias."""
    a, b, bias = ctx.saved_tensors
    wants_a, wants_b, wants_bias, _, wants_residual = (*ctx.needs_input_grad, *[False] * 5)[:5]  # without the defaults at the end
    residual_grad = grad if wants_residual else None
    if ctx.activation is not None and (wants_a or wants_b or wants_bias):
        grad = ACTIVATION_GRADIENTS[ctx.activation](grad, ops.matmul(a, b, bias))
    return (
        ops.matmul(grad, b.t()) if wants_a else None,
        ops.matmul(a.t(), grad) if wants_b else None,
        grad.sum(0) if wants_bias else None,
        None,
        residual_grad,
    )


for _name, _gradient, _saves in (("attention", attention_gradient, attention_saves), ("matmul", matmul_gradient, matmul_saves)):
    for _each in (_name, f"{_name}_autograd"):
        torch.library.register_autograd(f"labkernels::{_each}", _gradient, setup_context=_saves, lib=LIBRARY)
