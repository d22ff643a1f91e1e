"""Padding: where the tokens of padded sequences lie when packed one after the other, the way there and back."""

import torch

from labkernels.padding.offsets import Padding

__all__ = ["Padding", "pad", "padding_offsets", "unpad"]



def padding_offsets(
    mask: torch.Tensor | None = None, lengths: torch.Tensor | None = None, seq_len: int | None = None, total: int | None = None
) -> Padding:
    """Where the tokens of padded sequences lie when packed one after the other: `Padding(indices, inverse, cu_seqlens)`, all int32.

    Either `mask` (batch, seq_len) bool, true where there is a token, wherever that is; or `lengths` (batch,) int32 or int64 of sequences
    padded at their ends to `seq_len`. How many tokens there are is needed on the host, as the length of `indices`: give it as `total`, or a
    GPU is waited for. Raises ArgumentError that names the wrong argument.
    """
    from labkernels.padding.padding_offsets_op import OP

    return OP.run(mask=mask, lengths=lengths, seq_len=seq_len, total=total)


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
