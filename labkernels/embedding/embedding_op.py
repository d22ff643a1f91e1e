"""The operation `embedding`: rows of a table by number. tokens (n,) int32 or int64, weight (vocab, cols); returns (n, cols).

A token outside 0 ... vocab - 1 gets zeros, where PyTorch stops the process.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from labkernels.elementwise.peers import compiled
from labkernels.operation import Op, Peer, Tolerance, Variant, dtype_name

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def reference(tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight[tokens.long()]


def native(tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.embedding(tokens, weight)


def problem(tokens: torch.Tensor, weight: torch.Tensor) -> str | None:
    if wrong := tokens_problem(tokens, weight.device):
        return wrong
    if weight.dim() != 2:
        return f"weight has shape {tuple(weight.shape)}; it must have two axes, (vocab, cols)"
    return None if weight.dtype in DTYPES else f"weight is {dtype_name(weight.dtype)}; it must be float32, bfloat16 or float16"


def tokens_problem(tokens: torch.Tensor, device) -> str | None:
    if tokens.dtype not in (torch.int32, torch.int64):
        return f"tokens is {dtype_name(tokens.dtype)}; it must be int32 or int64"
    if tokens.device != device:
        return f"tokens is on {tokens.device}, others are on {device}; all must be on one device"
    return None


def some_tokens(generator, device, n: int, vocab: int, text: str = "uniform", dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Tokens of a text: `uniform`; `frequent`, where token t comes with frequency 1 / t or so, as words do; `one`, the same again and again."""
    draws = torch.randn(n, generator=generator, device=generator.device).to(device)
    uniform = torch.special.ndtr(draws)
    share = {"uniform": uniform, "frequent": (vocab**uniform - 1) / vocab, "one": 0 * draws + 0.5}[text]
    return (share * vocab).long().clamp(0, vocab - 1).to(dtype)


def make_inputs(generator, device, dtype, *, n: int, vocab: int, cols: int, text: str = "uniform", layout: str = "contiguous") -> dict:
    """A normally distributed table; layout `apart` has rows with a gap behind them and int32 tokens."""
    table = torch.randn((vocab, 2 * cols if layout == "apart" else cols), generator=generator, device=generator.device).to(device, dtype)[:, :cols]
    return {"tokens": some_tokens(generator, device, n, vocab, text, torch.int32 if layout == "apart" else torch.int64), "weight": table}


def distinct(n: int, vocab: int) -> float:
    """How many different ones of `vocab` equally frequent tokens to expect among n."""
    return vocab * (1 - (1 - 1 / vocab) ** n)


def load_variants() -> Mapping[str, Variant]:
    from labkernels.embedding.embedding_variants import VARIANTS

    return VARIANTS


def _hints(failure) -> str | None:
    tokens, weight = failure.inputs["tokens"].long(), failure.inputs["weight"].double()
    in_order = weight[torch.arange(len(tokens), device=tokens.device) % len(weight)]
    mistakes = [("the rows in the order of the table: tokens are not looked at", in_order)]
    return failure.matching([*mistakes, ("one row further on: tokens count from 0", weight[(tokens + 1) % len(weight)])])


OP = Op(
    name="embedding",
    summary="rows of a table by number",
    load_variants=load_variants,
    reference=reference,
    native=native,
    problem=problem,
    trivial=lambda tokens, weight: weight.new_zeros((*tokens.shape, weight.shape[1])) if tokens.numel() == 0 or weight.numel() == 0 else None,
    make_inputs=make_inputs,
    axes=("row", "col"),
    dtypes=DTYPES,
    small_shapes=({"n": 1, "vocab": 1, "cols": 1}, {"n": 5, "vocab": 7, "cols": 33}, {"n": 3, "vocab": 4, "cols": 24, "layout": "apart"}),
    check_shapes=(
        {"n": 1, "vocab": 3, "cols": 1},
        {"n": 33, "vocab": 10, "cols": 3},
        {"n": 70, "vocab": 50, "cols": 64},
        {"n": 9, "vocab": 1000, "cols": 33, "text": "frequent"},
        {"n": 20, "vocab": 9, "cols": 40, "layout": "apart"},
    ),
    large_shapes=({"n": 5000, "vocab": 32_000, "cols": 2048}, {"n": 3001, "vocab": 1000, "cols": 129}),
    tolerance=lambda dtype, **_: Tolerance(relative=1e-7, absolute=1e-12),
    hints=_hints,
    complete_shape=lambda dtype, *, n=16_384, vocab=128_256, cols=2048, text="uniform": {"n": n, "vocab": vocab, "cols": cols, "text": text},
    sweep={"dtype": ["bfloat16"], "n": [256, 4096, 65_536]},
    record_sweeps=({"dtype": ["bfloat16"], "n": [256, 4096, 65_536]},),
    bytes_moved=lambda dtype, *, n, vocab, cols, **_: (distinct(n, vocab) + n) * cols * dtype.itemsize + 8 * n,
    peers={"torch": Peer("torch", native), "torch.compile": compiled(native)},
)
