"""The norms and their gradients in plain PyTorch, in the precision of their inputs, and what is wrong with inputs that are none."""

from __future__ import annotations

import torch

from labkernels.operation import dtype_name

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NARROW = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}  # dtypes of a quantised norm, and the largest number of each


def rms_norm(x, weight=None, eps=1e-5) -> torch.Tensor:
    """x / sqrt(mean of squares + eps) * weight, over the last axis."""
    y = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)
    return y if weight is None else y * weight


def layer_norm(x, weight=None, bias=None, eps=1e-5) -> torch.Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, over the last axis; the variance is that of the row itself (divided by cols)."""
    y = rms_norm(x - x.mean(-1, keepdim=True), weight, eps)
    return y if bias is None else y + bias


def add_rms_norm(x, residual, weight=None, bias=None, eps=1e-5) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm of the sum, the sum): the sum is x + residual + bias."""
    total = x + residual if bias is None else x + bias + residual
    return rms_norm(total, weight, eps), total


def quantized(y: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(values, scale) with y = values * scale, one float32 scale a row (rows, 1): the row's largest |y| becomes the dtype's largest number."""
    largest = NARROW[dtype]
    scale = y.abs().amax(-1, keepdim=True) / largest
    values = torch.where(scale > 0, y / scale, 0)
    return (values.round() if dtype == torch.int8 else values).clamp(-largest, largest).to(dtype), scale.float()


def rms_norm_backward(grad_out, x, weight=None, eps=1e-5, grad_sum=None) -> tuple[torch.Tensor, torch.Tensor]:
    """(dx, dweight) of rms_norm; grad_sum, what else arrives at x as a gradient, is added to dx."""
    return _gradients(grad_out, x, weight, eps, grad_sum, centred=False)[:2]


def layer_norm_backward(grad_out, x, weight=None, eps=1e-5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, dweight, dbias) of layer_norm."""
    return _gradients(grad_out, x, weight, eps, None, centred=True)


def _gradients(grad_out, x, weight, eps, added, centred: bool):
    x = x - x.mean(-1, keepdim=True) if centred else x
    rstd = torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)
    normal = x * rstd
    g = grad_out if weight is None else grad_out * weight
    dx = g - normal * (g * normal).mean(-1, keepdim=True)
    dx = rstd * (dx - g.mean(-1, keepdim=True) if centred else dx)
    return dx if added is None else dx + added, (grad_out * normal).sum(0), grad_out.sum(0)


def problem(x: torch.Tensor, eps, vectors: dict[str, torch.Tensor | None], matrices: dict[str, torch.Tensor | None]) -> str | None:
    """What is wrong with x (rows, cols), with `vectors` (cols,) and with `matrices` like x, or None. All vectors but `bias` of a sum share
    one dtype: x's, or float32."""
    if x.dim() != 2:
        return f"x has shape {tuple(x.shape)}; it must have two axes, (rows, cols)"
    if x.dtype not in DTYPES:
        return f"x is {dtype_name(x.dtype)}; it must be {', '.join(map(dtype_name, DTYPES[:-1]))} or {dtype_name(DTYPES[-1])}"
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not eps >= 0:
        return f"eps is {eps!r}; it must be a number from 0 on"
    for name, tensor in (vectors | matrices).items():
        if tensor is None:
            continue
        shape = (x.shape[1],) if name in vectors else tuple(x.shape)
        if tuple(tensor.shape) != shape:
            return f"{name} has shape {tuple(tensor.shape)}; it must be {shape}" + (", one number a column of x" if name in vectors else ", that of x")
        if tensor.device != x.device:
            return f"{name} is on {tensor.device}, x is on {x.device}; both must be on one device"
        if tensor.dtype != x.dtype and (name in matrices or tensor.dtype != torch.float32):
            return f"{name} is {dtype_name(tensor.dtype)}, x is {dtype_name(x.dtype)}; " + (
                "both must be the same" if name in matrices else "it must be of x's dtype, or float32"
            )
        if name in vectors and tensor.stride(0) != 1 and x.shape[1] > 1:
            return f"{name} has stride {tensor.stride(0)}; its elements must be dense in memory (stride 1)"
    given = {name: tensor.dtype for name, tensor in vectors.items() if tensor is not None}
    if len(set(given.values())) > 1:
        return " and ".join(f"{name} is {dtype_name(dtype)}" for name, dtype in given.items()) + "; both must be of one dtype"
    return None
