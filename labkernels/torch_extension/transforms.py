"""What torch asks of an operator beyond its result: a rule for torch.vmap, and a clear word where a gradient's own gradient is wanted.

Attention takes the mapped axis into its batch, operations on rows take it as one more axis of rows. The others refuse, and say what to do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from labkernels.errors import ArgumentError

ROWS = {"rms_norm": 1, "layer_norm": 1, "add_rms_norm": 2, "swiglu": 2, "residual_add": 2}  # how many of its tensors, the first ones, are rows


def second_gradient_refusal(name: str) -> str:
    return f"{name.removesuffix('_autograd').removesuffix('_backward')}: its gradients have no gradients of their own"


def no_second_gradient(name: str) -> Callable:
    """The gradient of the operator NAME_backward."""

    def refuse(ctx, *grads):
        raise ArgumentError(second_gradient_refusal(name))

    return refuse


def vmap_rule(name: str) -> Callable:
    """What the operator does under torch.vmap: see torch.library.register_vmap."""
    if name in ("attention", "attention_backward"):
        return _into_the_batch(name, 3 if name == "attention" else 6)
    if name in ROWS:
        return _more_rows(name, ROWS[name])

    def refuse(info, in_dims, *args):
        raise ArgumentError(f"{name}: torch.vmap has no rule for it; give it all at once, its inputs have an axis for the batch, or call it in a loop")

    return refuse


def _stacked(tensor: torch.Tensor | None, dim: int | None, size: int) -> torch.Tensor | None:
    """The mapped axis first; a tensor that is not mapped is repeated along it."""
    if tensor is None:
        return None
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _into_the_batch(name: str, count: int) -> Callable:
    def rule(info, in_dims, *args):
        size, dims = info.batch_size, (*in_dims, *[None] * len(args))
        tensors = [_stacked(tensor, dim, size).flatten(0, 1) for tensor, dim in zip(args[:count], dims)]
        options = list(args[count:])
        mask_at = count + 4  # behind causal, scale and the window's two sides
        if len(args) > mask_at and args[mask_at] is not None:
            mask = _stacked(args[mask_at], dims[mask_at], size)
            mask = mask.reshape(size, *[1] * (5 - mask.dim()), *mask.shape[1:])
            options[-1] = mask.expand(size, args[0].shape[0] if dims[0] is None else tensors[0].shape[0] // size, -1, -1, -1).flatten(0, 1)
        results = getattr(torch.ops.labkernels, name)(*tensors, *options)
        return tuple(result.unflatten(0, (size, -1)) for result in results), (0,) * len(results)

    return rule


def _more_rows(name: str, count: int) -> Callable:
    def rule(info, in_dims, *args):
        if any(dim is not None for dim in in_dims[count:]):
            raise ArgumentError(f"{name}: under torch.vmap its weight and bias must be the same for all; call it in a loop where they differ")
        rows = [_stacked(tensor, dim, info.batch_size) for tensor, dim in zip(args[:count], in_dims)]
        results = getattr(torch.ops.labkernels, name)(*rows, *args[count:])
        return results, 0 if isinstance(results, torch.Tensor) else (0,) * len(results)

    return rule
