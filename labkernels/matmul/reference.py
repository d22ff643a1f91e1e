"""Matrix multiplication by its definition, in plain PyTorch: every other implementation is compared with this one in float64."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

ACTIVATIONS = {  # in the order of `enum class Activation` in include/epilogue.cuh
    None: lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


def reference(a, b, bias=None, activation=None, residual=None) -> torch.Tensor:
    """activation(a @ b + bias) + residual, in the precision of its inputs. Shapes as in `labkernels.matmul.matmul`."""
    return finish(a @ b, bias, activation, residual)


def finish(product, bias=None, activation=None, residual=None) -> torch.Tensor:
    """What follows the product (m, n): activation(product + bias) + residual."""
    result = product if bias is None else product + bias
    result = ACTIVATIONS[activation](result)
    return result if residual is None else result + residual
