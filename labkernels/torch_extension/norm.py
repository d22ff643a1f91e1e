"""The norms as torch operators, with fake kernels and gradients.

    labkernels::rms_norm(x, weight, eps) -> Tensor                                     as labkernels.norm.rms_norm
    labkernels::layer_norm(x, weight, bias, eps) -> Tensor
    labkernels::add_rms_norm(x, residual, weight, bias, eps) -> (y, sum)
    labkernels::rms_norm_quantized(x, weight, eps, dtype) -> (values, scale)           forward only, as add_rms_norm_quantized
    labkernels::rms_norm_backward(grad_out, x, weight, eps, grad_sum) -> (dx, dweight)
    labkernels::layer_norm_backward(grad_out, x, weight, eps) -> (dx, dweight, dbias)

x has any number of axes and any strides: what no kernel reads in place is copied first. Kernels are launched from Python.
"""

from __future__ import annotations

import torch

from labkernels.errors import ArgumentError
from labkernels.norm import _rows
from labkernels.norm.add_rms_norm_op import OP as ADD_RMS_NORM
from labkernels.norm.layer_norm_backward_op import OP as LAYER_NORM_BACKWARD
from labkernels.norm.layer_norm_op import OP as LAYER_NORM
from labkernels.norm.rms_norm_backward_op import OP as RMS_NORM_BACKWARD
from labkernels.norm.rms_norm_op import OP as RMS_NORM
from labkernels.norm.rms_norm_quantized_op import OP as RMS_NORM_QUANTIZED
from labkernels.operation import Op
from labkernels.torch_extension.operators import LIBRARY, define

_ADD = "Tensor x, Tensor residual, "
_WEIGHT = "Tensor? weight=None, "
_BIAS = "Tensor? bias=None, "
_EPS = "float eps=1e-5"
SCHEMAS = {
    "rms_norm": f"(Tensor x, {_WEIGHT}{_EPS}) -> Tensor",
    "layer_norm": f"(Tensor x, {_WEIGHT}{_BIAS}{_EPS}) -> Tensor",
    "add_rms_norm": f"({_ADD}{_WEIGHT}{_BIAS}{_EPS}) -> (Tensor y, Tensor sum)",
    "rms_norm_quantized": f"(Tensor x, {_WEIGHT}{_EPS}, ScalarType dtype=float8_e4m3fn) -> (Tensor values, Tensor scale)",
    "add_rms_norm_quantized": f"({_ADD}{_BIAS}{_WEIGHT}{_EPS}, ScalarType dtype=float8_e4m3fn) -> (Tensor values, Tensor scale, Tensor sum)",
    "rms_norm_backward": f"(Tensor grad_out, Tensor x, {_WEIGHT}{_EPS}, Tensor? grad_sum=None) -> (Tensor dx, Tensor dweight)",
    "layer_norm_backward": f"(Tensor grad_out, Tensor x, {_WEIGHT}{_EPS}) -> (Tensor dx, Tensor dweight, Tensor dbias)",
}


def rms_norm(x, weight=None, eps=1e-5):
    return RMS_NORM.run(x=_dense(x), weight=_dense_vector(weight), eps=eps).view(x.shape)


def layer_norm(x, weight=None, bias=None, eps=1e-5):
    return LAYER_NORM.run(x=_dense(x), weight=_dense_vector(weight), bias=_dense_vector(bias), eps=eps).view(x.shape)


def add_rms_norm(x, residual, weight=None, bias=None, eps=1e-5):
    given = {"weight": _dense_vector(weight), "bias": _dense_vector(bias), "eps": eps}
    return tuple(one.view(x.shape) for one in ADD_RMS_NORM.run(x=_dense(x), residual=_dense(residual), **given))


def rms_norm_quantized(x, weight=None, eps=1e-5, dtype=torch.float8_e4m3fn):
    values, scale = RMS_NORM_QUANTIZED.run(x=_dense(x), weight=_dense_vector(weight), eps=eps, dtype=dtype)
    return values.view(x.shape), scale.view(*x.shape[:-1], 1)


def add_rms_norm_quantized(x, residual, bias=None, weight=None, eps=1e-5, dtype=torch.float8_e4m3fn):
    given = {"weight": _dense_vector(weight), "eps": eps, "dtype": dtype, "bias": _dense_vector(bias)}
    values, scale, total = RMS_NORM_QUANTIZED.run(x=_dense(x), residual=_dense(residual), **given)
    return values.view(x.shape), scale.view(*x.shape[:-1], 1), total.view(x.shape)


def rms_norm_backward(grad_out, x, weight=None, eps=1e-5, grad_sum=None):
    given = {"weight": _dense_vector(weight), "eps": eps} | ({} if grad_sum is None else {"grad_sum": _dense(grad_sum)})
    dx, dweight = RMS_NORM_BACKWARD.run(grad_out=_dense(grad_out), x=_dense(x), **given)
    return dx.view(x.shape), dweight


def layer_norm_backward(grad_out, x, weight=None, eps=1e-5):
    dx, dweight, dbias = LAYER_NORM_BACKWARD.run(grad_out=_dense(grad_out), x=_dense(x), weight=_dense_vector(weight), eps=eps)
    return dx.view(x.shape), dweight, dbias


def _dense(x: torch.Tensor) -> torch.Tensor:
    """x as (rows, cols) whose rows are dense in memory."""
    rows = _rows(x)
    return rows if rows.dim() != 2 or rows.stride(1) == 1 or rows.shape[1] <= 1 else rows.contiguous()


def _dense_vector(vector: torch.Tensor | None) -> torch.Tensor | None:
    return vector if vector is None else vector.contiguous()


def _like(x: torch.Tensor | None) -> torch.Tensor | None:
    """A dense tensor of x's shape as (rows, cols), for a check of all but the strides."""
    return None if x is None else x.new_empty(x.shape) if x.dim() < 2 else x.new_empty((x.shape[:-1].numel(), x.shape[-1]))


def _check(op: Op, **inputs) -> None:
    problem = op.problem(**{name: _like(value) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()})
    if problem is not None:
        raise ArgumentError(f"{op.name}: {problem}")


def rms_norm_fake(x, weight=None, eps=1e-5):
    _check(RMS_NORM, x=x, weight=weight, eps=eps)
    return x.new_empty(x.shape)


def layer_norm_fake(x, weight=None, bias=None, eps=1e-5):
    _check(LAYER_NORM, x=x, weight=weight, bias=bias, eps=eps)
    return x.new_empty(x.shape)


def add_rms_norm_fake(x, residual, weight=None, bias=None, eps=1e-5):
    _check(ADD_RMS_NORM, x=x, residual=residual, weight=weight, bias=bias, eps=eps)
    return x.new_empty(x.shape), x.new_empty(x.shape)


def rms_norm_quantized_fake(x, weight=None, eps=1e-5, dtype=torch.float8_e4m3fn):
    _check(RMS_NORM_QUANTIZED, x=x, weight=weight, eps=eps, dtype=dtype)
    return x.new_empty(x.shape, dtype=dtype), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


def add_rms_norm_quantized_fake(x, residual, bias=None, weight=None, eps=1e-5, dtype=torch.float8_e4m3fn):
    _check(RMS_NORM_QUANTIZED, x=x, residual=residual, weight=weight, bias=bias, eps=eps, dtype=dtype)
    return *rms_norm_quantized_fake(x, weight, eps, dtype), x.new_empty(x.shape)


def rms_norm_backward_fake(grad_out, x, weight=None, eps=1e-5, grad_sum=None):
    _check(RMS_NORM_BACKWARD, grad_out=grad_out, x=x, weight=weight, eps=eps, grad_sum=grad_sum)
    return x.new_empty(x.shape), (x if weight is None else weight).new_empty(x.shape[-1:])


def layer_norm_backward_fake(grad_out, x, weight=None, eps=1e-5):
    _check(LAYER_NORM_BACKWARD, grad_out=grad_out, x=x, weight=weight, eps=eps)
    like = x if weight is None else weight
    return x.new_empty(x.shape), like.new_empty(x.shape[-1:]), like.new_empty(x.shape[-1:])


for _name, _schema in SCHEMAS.items():
    define(_name, _schema, globals()[_name], globals()[f"{_name}_fake"])

ops = torch.ops.labkernels


def _rms_norm_saves(ctx, inputs, output) -> None:
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _rms_norm_gradient(ctx, grad):
    x, weight = ctx.saved_tensors
    dx, dweight = ops.rms_norm_backward(grad, x, weight, ctx.eps)
    return dx, None if weight is None else dweight, None


def _layer_norm_saves(ctx, inputs, output) -> None:
    x, weight, bias, ctx.eps = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _layer_norm_gradient(ctx, grad):
    x, weight = ctx.saved_tensors
    dx, dweight, dbias = ops.layer_norm_backward(grad, x, weight, ctx.eps)
    return dx, None if weight is None else dweight, None if ctx.bias_dtype is None else dbias.to(ctx.bias_dtype), None


def _add_rms_norm_saves(ctx, inputs, output) -> None:
    _, _, weight, bias, ctx.eps = inputs
    ctx.save_for_backward(output[1], weight)
    ctx.has_bias = bias is not None


def _add_rms_norm_gradient(ctx, grad, grad_sum):
    total, weight = ctx.saved_tensors
    dx, dweight = ops.rms_norm_backward(grad, total, weight, ctx.eps, grad_sum)
    dbias = dx.reshape(-1, dx.shape[-1]).sum(0) if ctx.has_bias else None
    return dx, dx, None if weight is None else dweight, dbias, None


for _name, _gradient, _saves in (
    ("rms_norm", _rms_norm_gradient, _rms_norm_saves),
    ("layer_norm", _layer_norm_gradient, _layer_norm_saves),
    ("add_rms_norm", _add_rms_norm_gradient, _add_rms_norm_saves),
):
    torch.library.register_autograd(f"labkernels::{_name}", _gradient, setup_context=_saves, lib=LIBRARY)
