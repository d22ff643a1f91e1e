"""The operation `padding_offsets`: which positions of padded sequences hold tokens, and where these lie when packed one after the other.

Either `mask` (batch, seq_len) bool says where tokens are, or `lengths` (batch,) how many each sequence begins with, of seq_len positions.
`total`, how many tokens there are in all, is the length of one result; if it is not given it is read, and a GPU waited for.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.operation import Op, Peer, Tolerance, Variant, dtype_name
from labkernels.padding.offsets import Padding


def token_mask(mask: torch.Tensor | None, lengths: torch.Tensor | None, seq_len: int | None) -> torch.Tensor:
    return mask if mask is not None else torch.arange(seq_len, device=lengths.device) < lengths[:, None]


def native(mask: torch.Tensor | None, lengths: torch.Tensor | None = None, seq_len: int | None = None, total: int | None = None) -> Padding:
    """With PyTorch's operations, and no wait for a GPU where total is given."""
    mask = token_mask(mask, lengths, seq_len)
    flat = mask.flatten()
    ends = flat.cumsum(0, dtype=torch.int32)
    total = int(flat.sum()) if total is None else total
    inverse = torch.where(flat, ends - 1, -1)
    positions = torch.arange(flat.numel(), dtype=torch.int32, device=flat.device)
    indices = torch.zeros(total + 1, dtype=torch.int32, device=flat.device).scatter(0, torch.where(flat, inverse, total).long(), positions)
    cu_seqlens = torch.nn.functional.pad(mask.sum(1).cumsum(0, dtype=torch.int32), (1, 0))
    return Padding(indices[:total], inverse.view(mask.shape), cu_seqlens)


def reference(mask: torch.Tensor | None, lengths: torch.Tensor | None = None, seq_len: int | None = None, total: int | None = None) -> Padding:
    """The same as float64, to be compared with."""
    mask = token_mask(mask, lengths, seq_len)
    inverse = torch.full(mask.shape, -1, device=mask.device)
    indices = mask.flatten().nonzero()[:, 0]
    inverse.view(-1)[indices] = torch.arange(len(indices), device=mask.device)
    starts = [0, *mask.sum(1).cumsum(0).tolist()]
    return Padding(indices.double(), inverse.double(), torch.tensor(starts, dtype=torch.float64, device=mask.device))


def decode(result, **inputs) -> tuple[torch.Tensor, ...]:
    """int32 as float32, as which the judge compares; what is not three tensors of int32 is left to it."""
    if not isinstance(result, tuple):
        return result
    return tuple(one.float() if isinstance(one, torch.Tensor) and one.dtype == torch.int32 else one for one in result)


def problem(mask=None, lengths=None, seq_len=None, total=None) -> str | None:
    if (mask is None) == (lengths is None):
        return "give either mask or lengths"
    if mask is not None:
        if mask.dim() != 2 or mask.dtype != torch.bool:
            return f"mask is {dtype_name(mask.dtype)} of shape {tuple(mask.shape)}; it must be bool, (batch, seq_len)"
    elif lengths.dim() != 1 or lengths.dtype not in (torch.int32, torch.int64):
        return f"lengths is {dtype_name(lengths.dtype)} of shape {tuple(lengths.shape)}; it must be int32 or int64, (batch,)"
    elif not isinstance(seq_len, int) or seq_len < 0:
        return f"seq_len is {seq_len!r}; with lengths it must be an int of at least 0"
    size = mask.numel() if mask is not None else len(lengths) * seq_len
    return f"{size} positions are more than int32 can count" if size >= 2**31 else None


def make_inputs(generator, device, dtype, *, batch: int, seq_len: int, layout: str = "contiguous") -> dict:
    """Two thirds of all positions hold tokens, scattered; layout `transposed` is a view of (seq_len, batch)."""
    sequence, position = torch.arange(batch, device=device)[:, None], torch.arange(seq_len, device=device)
    mask = (5 * sequence + 7 * position) % 3 != 0
    total = sum((5 * i + 7 * j) % 3 != 0 for i in range(3) for j in range(seq_len)) * (batch // 3)
    total += sum((5 * i + 7 * j) % 3 != 0 for i in range(batch % 3) for j in range(seq_len))  # the pattern repeats every three sequences
    return {"mask": mask.t().contiguous().t() if layout == "transposed" else mask, "total": total}


def trivial(mask=None, lengths=None, seq_len=None, total=None) -> Padding | None:
    size = tuple(mask.shape) if mask is not None else (len(lengths), seq_len)
    if size[0] * size[1]:
        return None
    empty = torch.zeros(size[0] + 1, dtype=torch.int32, device=(lengths if mask is None else mask).device)
    return Padding(empty[:0], empty.new_empty(size), empty)


def load_variants() -> Mapping[str, Variant]:
    from labkernels.padding.padding_offsets_variants import VARIANTS

    return VARIANTS


OP = Op(
    name="padding_offsets",
    summary="where the tokens of padded sequences lie when packed one after the other",
    load_variants=load_variants,
    reference=reference,
    native=native,
    decode=decode,
    problem=problem,
    trivial=trivial,
    make_inputs=make_inputs,
    axes=("sequence", "position"),
    results=("indices", "inverse", "cu_seqlens"),
    dtypes=(torch.float32,),  # as which int32 is compared
    small_shapes=({"batch": 2, "seq_len": 5},),
    check_shapes=(
        {"batch": 1, "seq_len": 2},
        {"batch": 3, "seq_len": 33},
        {"batch": 70, "seq_len": 3},
        {"batch": 2, "seq_len": 300},
        {"batch": 4, "seq_len": 9, "layout": "transposed"},
    ),
    large_shapes=({"batch": 300, "seq_len": 100}, {"batch": 3, "seq_len": 5000}),
    tolerance=lambda dtype, **_: Tolerance(relative=1e-12, absolute=1e-12),
    complete_shape=lambda dtype, *, seq_len=2048, batch=16: {"batch": batch, "seq_len": seq_len},
    sweep={"seq_len": [128, 2048]},
    record_sweeps=({"seq_len": [128, 512, 2048]},),
    bytes_moved=lambda dtype, *, batch, seq_len, **_: batch * seq_len * (1 + 4 + 4 * 2 // 3),
    peers={"torch": Peer("torch", native)},
)
