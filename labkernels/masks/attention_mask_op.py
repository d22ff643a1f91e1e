"""The operation `attention_mask`: causal, window and padding as one mask of (batch, 1, seq_len, kv_len), boolean or to be added to scores.

Aligned bottom right as in `labkernels.attention`: query i stands at key p = i + kv_len - seq_len. It may see key j if j < lengths[batch], if
j <= p where causal, and if p - left <= j <= p + right where there is a window. A boolean mask is true where a key may be seen; an additive
one is 0 there and `hidden` elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.attention.op import window_problem
from labkernels.elementwise.peers import compiled
from labkernels.operation import Op, Peer, Tolerance, Variant, dtype_name

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def reference(
    lengths: torch.Tensor, seq_len: int, kv_len: int, causal: bool = False, window: tuple[int | None, int | None] | None = None,
    dtype: torch.dtype = torch.bool, hidden: float = -torch.inf,
) -> torch.Tensor:  # fmt: skip
    """(batch, 1, seq_len, kv_len) of `dtype`, from the number of keys of each sequence, lengths (batch,) int64."""
    place = torch.arange(seq_len, device=lengths.device)[:, None] + kv_len - seq_len
    key = torch.arange(kv_len, device=lengths.device)
    left, right = window or (None, None)
    shown = (key < lengths[:, None, None, None]).expand(-1, 1, seq_len, kv_len)
    if causal:
        shown = shown & (key <= place)
    if left is not None:
        shown = shown & (key >= place - left)
    if right is not None:
        shown = shown & (key <= place + right)
    if dtype == torch.bool:
        return shown.contiguous()
    return torch.zeros((), dtype=dtype, device=lengths.device).masked_fill(~shown, hidden)


def problem(lengths, seq_len, kv_len, causal=False, window=None, dtype=torch.bool, hidden=-torch.inf) -> str | None:
    if lengths.dim() != 1 or lengths.dtype != torch.int64:
        return f"lengths is {dtype_name(lengths.dtype)} of shape {tuple(lengths.shape)}; it must be int64, one number a sequence"
    for name, size in (("seq_len", seq_len), ("kv_len", kv_len)):
        if not isinstance(size, int) or size < 0:
            return f"{name} is {size!r}; it must be an int of at least 0"
    if dtype != torch.bool and dtype not in DTYPES:
        return f"dtype is {dtype_name(dtype)}; it must be bool, or float32, bfloat16 or float16 for a mask to be added"
    return window_problem(window)


def make_inputs(generator, device, dtype, *, batch: int, seq_len: int, kv_len: int, causal: bool = False, window=None, padded: bool = False) -> dict:
    """An additive mask that hides with -30000, so that nothing is infinite; `padded`: sequences of different lengths, of at least one key."""
    sequence = torch.arange(batch, device=device)
    lengths = kv_len - (sequence * 7) % max(1, kv_len) if padded else torch.full_like(sequence, kv_len)
    return {"lengths": lengths, "seq_len": seq_len, "kv_len": kv_len, "causal": causal, "window": window, "dtype": dtype, "hidden": -30_000.0}


def _hints(failure) -> str | None:
    given = failure.inputs
    mistakes = []
    if given["causal"]:
        place = torch.arange(given["seq_len"], device=failure.want.device)[:, None]
        top_left = torch.arange(given["kv_len"], device=failure.want.device) <= place
        want = failure.want.new_zeros(failure.want.shape).masked_fill(~top_left, given["hidden"])
        mistakes.append(("causal from the top left: the last query stands at the last key", want))
    inverted = given["hidden"] - failure.want
    return failure.matching([*mistakes, ("the other way round: hidden is what may be seen", inverted)])


def load_variants() -> Mapping[str, Variant]:
    from labkernels.masks.attention_mask_variants import VARIANTS

    return VARIANTS


def _trivial(lengths, seq_len, kv_len, dtype=torch.bool, **_):
    size = (len(lengths), 1, seq_len, kv_len)
    return None if size[0] * seq_len * kv_len else torch.empty(size, dtype=dtype, device=lengths.device)


def shape(batch: int, seq_len: int, kv_len: int, **other) -> dict:
    return {"batch": batch, "seq_len": seq_len, "kv_len": kv_len, **other}


OP = Op(
    name="attention_mask",
    summary="causal, window and padding as one mask, boolean or additive",
    load_variants=load_variants,
    reference=reference,
    native=reference,
    problem=problem,
    trivial=_trivial,
    make_inputs=make_inputs,
    axes=("batch", "head", "query", "key"),
    dtypes=DTYPES,
    small_shapes=(shape(2, 3, 3, causal=True), shape(2, 3, 8, padded=True, window=(2, 1))),
    check_shapes=(
        shape(1, 3, 33, causal=True),
        shape(3, 5, 5, causal=True, padded=True),
        shape(2, 7, 64, window=(5, None)),
        shape(2, 40, 24, causal=True, window=(3, 0)),
        shape(4, 2, 104, padded=True, window=(None, 3)),
    ),
    large_shapes=(shape(2, 1000, 2048, causal=True, padded=True), shape(1, 777, 1001, window=(100, 0))),
    tolerance=lambda dtype, **_: Tolerance(relative=1e-6, absolute=1e-6),
    hints=_hints,
    complete_shape=lambda dtype, *, seq_len=4096, batch=8: shape(batch, seq_len, seq_len, causal=True, padded=True),
    sweep={"dtype": ["bfloat16"], "seq_len": [512, 2048, 8192]},
    record_sweeps=({"dtype": ["bfloat16"], "seq_len": [512, 2048, 8192]},),
    bytes_moved=lambda dtype, *, batch, seq_len, kv_len, **_: batch * seq_len * kv_len * dtype.itemsize,
    peers={"torch": Peer("torch", reference), "torch.compile": compiled(reference)},
)
