"""Padding: where the tokens of padded sequences lie when packed one after the other, the way there and back."""

import torch

from labkernels.padding.offsets import Padding, padding_offsets

__all__ = ["Padding", "pad", "padding_offsets", "unpad"]


def unpad(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """The tokens of padded sequences alone, one sequence after the other: x (batch, seq_len, cols) to (total, cols).

    x float32, bfloat16 or float16; indices (total,) int32 or int64 as `padding_offsets` gives them. What `attention_varlen` takes, with
    `cu_seqlens`. Differentiable in x; under torch.compile it is `torch.ops.labkernels.unpad`. Raises ArgumentError that names the wrong input.
    """
    from labkernels.elementwise import _through_torch
    from labkernels.padding.unpad_op import OP

    if _through_torch(x):
        return torch.ops.labkernels.unpad(x, indices)
    return OP.run(x=x, indices=indices)


def pad(packed: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Packed tokens back at their places in padded sequences, zeros between: packed (total, cols) to (batch, seq_len, cols).

    packed float32, bfloat16 or float16; inverse (batch, seq_len) int32 or int64 as `padding_offsets` gives it, -1 where there is padding.
    Differentiable in packed; under torch.compile it is `torch.ops.labkernels.pad`. Raises ArgumentError that names the wrong input.
    """
    from labkernels.elementwise import _through_torch
    from labkernels.padding.pad_op import OP

    if _through_torch(packed):
        return torch.ops.labkernels.pad(packed, inverse)
    return OP.run(packed=packed, inverse=inverse)
