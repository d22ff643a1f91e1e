"""A linear layer without bias on this package's matmul, as a torch operator: labkernels::linear(x, weight) -> x @ weight.t().

Notable: `lk.functional.matmul(x, weight.t())` computes the same, but the gradient of `weight.t()` is a transposed one, which autograd copies before it is
the weight's. Here it is made the way the weight lies, by a product that reads its transposed factor in place.
"""

from __future__ import annotations

import torch

from labkernels.torch_extension.operators import LIBRARY, define

_matmul = torch.ops.labkernels.matmul


def cast_for_autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Under autocast in its dtype, as PyTorch's own products have it."""
    kind = tensors[0].device.type
    return tuple(each.to(torch.get_autocast_dtype(kind)) for each in tensors) if torch.is_autocast_enabled(kind) else tensors


def forward(x, weight):
    return _matmul(x.reshape(-1, x.shape[-1]), weight.t()).view(*x.shape[:-1], weight.shape[0])


def forward_fake(x, weight):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx, grad):
    x, weight = ctx.saved_tensors
    wants_x, wants_weight = ctx.needs_input_grad
    rows = grad.reshape(-1, grad.shape[-1])
    dx = _matmul(rows, weight).view(x.shape) if wants_x else None
    return dx, _matmul(rows.t(), x.reshape(-1, x.shape[-1])) if wants_weight else None


define("linear", "(Tensor x, Tensor weight) -> Tensor", forward, forward_fake)
torch.library.register_autograd("labkernels::linear", _gradient, setup_context=_save, lib=LIBRARY)
