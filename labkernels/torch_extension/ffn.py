"""The feed-forward network as a torch operator, with fake kernels and gradients.

    labkernels::ffn(x, w1, w2, b1, b2, activation, save) -> (y, pre)                    as labkernels.ffn.ffn; x has two axes
    labkernels::ffn_backward(grad_out, x, pre, w1, w2, activation, bias) -> (dx, dw1, dw2, db1, db2)    as labkernels.ffn.ffn_backward

`pre`, the pre-activations, is there if `save`, for the backward pass; else it has no elements, and the backward pass works it out again. Any
strides will do: what the kernels cannot read in place is copied first. Kernels are launched from Python.
"""

from __future__ import annotations

import torch

from labkernels.ffn.ffn_backward_op import OP as BACKWARD
from labkernels.ffn.op import OP as FFN
from labkernels.ffn.variants import activated
from labkernels.matmul.op import OP as MATMUL
from labkernels.torch_extension.operators import LIBRARY, _check, _dense, _like, define

SCHEMAS = {
    "ffn": '(Tensor x, Tensor w1, Tensor w2, Tensor? b1=None, Tensor? b2=None, str activation="gelu", bool save=False) -> (Tensor y, Tensor pre)',
    "ffn_backward": '(Tensor grad_out, Tensor x, Tensor pre, Tensor w1, Tensor w2, str activation="gelu", bool bias=False) '
    "-> (Tensor dx, Tensor dw1, Tensor dw2, Tensor db1, Tensor db2)",
}


def ffn(x, w1, w2, b1=None, b2=None, activation="gelu", save=False):
    x, w1, w2, b1, b2 = map(_dense, (x, w1, w2, b1, b2))
    if not save or not x.numel() or not w2.numel():
        return FFN.run(x=x, w1=w1, w2=w2, b1=b1, b2=b2, activation=activation), x.new_empty((x.shape[0] if save else 0, w1.shape[0]))
    _check(FFN, x=x, w1=w1, w2=w2, b1=b1, b2=b2, activation=activation)
    pre = MATMUL.run(a=x, b=w1.t(), bias=b1, activation=None, residual=None)
    return MATMUL.run(a=activated(pre, activation), b=w2.t(), bias=b2, activation=None, residual=None), pre


def ffn_fake(x, w1, w2, b1=None, b2=None, activation="gelu", save=False):
    _check(FFN, x=_like(x), w1=_like(w1), w2=_like(w2), b1=_like(b1), b2=_like(b2), activation=activation)
    return x.new_empty(x.shape), x.new_empty((x.shape[0] if save else 0, w1.shape[0]))


def ffn_backward(grad_out, x, pre, w1, w2, activation="gelu", bias=False):
    grad_out, x, pre, w1, w2 = map(_dense, (grad_out, x, pre, w1, w2))
    return BACKWARD.run(grad_out=grad_out, x=x, pre=pre, w1=w1, w2=w2, activation=activation, bias=bias)


def ffn_backward_fake(grad_out, x, pre, w1, w2, activation="gelu", bias=False):
    given = {"grad_out": _like(grad_out), "x": _like(x), "pre": _like(pre), "w1": _like(w1), "w2": _like(w2)}
    _check(BACKWARD, **given, activation=activation, bias=bias)
    sizes = x.shape, w1.shape, w2.shape, (w1.shape[0] if bias else 0,), (x.shape[1] if bias else 0,)
    return tuple(x.new_empty(size) for size in sizes)


def _save(ctx, inputs, output) -> None:
    x, w1, w2, b1, b2, activation, _ = inputs
    _, pre = output
    ctx.mark_non_differentiable(pre)
    ctx.save_for_backward(x, w1, w2, b1, pre)
    ctx.activation, ctx.has_b2 = activation, b2 is not None


def _gradient(ctx, grad, _):
    x, w1, w2, b1, pre = ctx.saved_tensors
    if pre.shape[0] != x.shape[0]:
        pre = torch.ops.labkernels.matmul(x, w1.t(), b1)
    bias = b1 is not None or ctx.has_b2
    dx, dw1, dw2, db1, db2 = torch.ops.labkernels.ffn_backward(grad, x, pre, w1, w2, ctx.activation, bias)
    return dx, dw1, dw2, None if b1 is None else db1, db2 if ctx.has_b2 else None, None, None


for _name, _schema in SCHEMAS.items():
    define(_name, _schema, globals()[_name], globals()[f"{_name}_fake"])
torch.library.register_autograd("labkernels::ffn", _gradient, setup_context=_save, lib=LIBRARY)
