"""`torch.ops.labkernels.quant_matmul`: x @ w^T with a quantised weight, its fake kernel, and the gradient of x.

    quant_matmul(Tensor x, Tensor packed, Tensor scales, Tensor? codebook, str scheme, int? group_size, int n, int k) -> Tensor

The tensors are those of a `labkernels.quant.QuantizedWeight` of shape (n, k). x has any strides. The gradient of x is that of the product with the
dequantised weight; the weight has none.
"""

from __future__ import annotations

import torch

from labkernels.errors import ArgumentError
from labkernels.quant.formats import QuantizedWeight
from labkernels.quant.quant_matmul_op import OP
from labkernels.torch_extension.operators import LIBRARY, define

SCHEMA = "(Tensor x, Tensor packed, Tensor scales, Tensor? codebook, str scheme, int? group_size, int n, int k) -> Tensor"


def quant_matmul(x, packed, scales, codebook, scheme, group_size, n, k) -> torch.Tensor:
    return OP.run(x=x, weight=QuantizedWeight(scheme, (n, k), packed, scales, group_size, codebook))


def quant_matmul_fake(x, packed, scales, codebook, scheme, group_size, n, k) -> torch.Tensor:
    problem = OP.problem(x=x, weight=QuantizedWeight(scheme, (n, k), packed, scales, group_size, codebook))
    if problem is not None:
        raise ArgumentError(f"quant_matmul: {problem}")
    return x.new_empty((x.shape[0], n))


def _remember(ctx, inputs, output) -> None:
    x, packed, scales, codebook, ctx.scheme, ctx.group_size, n, k = inputs
    ctx.shape, ctx.dtype = (n, k), x.dtype
    ctx.save_for_backward(packed, scales, codebook)


def _backward(ctx, grad):
    packed, scales, codebook = ctx.saved_tensors
    weight = QuantizedWeight(ctx.scheme, ctx.shape, packed, scales, ctx.group_size, codebook)
    return grad @ weight.dequantize(ctx.dtype), *[None] * 7


define("quant_matmul", SCHEMA, quant_matmul, quant_matmul_fake)
torch.library.register_autograd("labkernels::quant_matmul", _backward, setup_context=_remember, lib=LIBRARY)
