"""The operation `unpad`: padding taken out. x (batch, seq_len, cols) and indices (total,) to the tokens alone, (total, cols)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.elementwise.peers import compiled
from labkernels.operation import Op, Peer, Tolerance, Variant, dtype_name

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def reference(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """The rows of x (batch, seq_len, cols) at the positions `indices`, counted sequence after sequence."""
    return x.flatten(0, 1)[indices.long()]


def native(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    return x.flatten(0, 1).index_select(0, indices)


def problem(x: torch.Tensor, indices: torch.Tensor) -> str | None:
    if x.dim() != 3:
        return f"x has shape {tuple(x.shape)}; it must have three axes, (batch, seq_len, cols)"
    return rows_problem("x", x, "indices", indices)


def rows_problem(name: str, x: torch.Tensor, index_name: str, index: torch.Tensor) -> str | None:
    if x.dtype not in DTYPES:
        return f"{name} is {dtype_name(x.dtype)}; it must be float32, bfloat16 or float16"
    if index.dtype not in (torch.int32, torch.int64):
        return f"{index_name} is {dtype_name(index.dtype)}; it must be int32 or int64"
    if index.device != x.device:
        return f"{index_name} is on {index.device}, {name} is on {x.device}; both must be on one device"
    return None


def lengths_of(batch: int, seq_len: int) -> list[int]:
    """Sequences of many lengths, the first of them full, half of all positions padding or nearly so."""
    return [seq_len - (i * seq_len * 5 // 8 + i) % (seq_len + 1) if i else seq_len for i in range(batch)]


def places(batch: int, seq_len: int, padded_at: str) -> tuple[list[int], list[int]]:
    """indices, and the flat inverse, of sequences padded at their ends (`right`) or at their starts (`left`)."""
    indices, inverse = [], []
    for sequence, length in enumerate(lengths_of(batch, seq_len)):
        start = 0 if padded_at == "right" else seq_len - length
        tokens = range(len(indices), len(indices) + length)
        inverse += [-1] * start + list(tokens) + [-1] * (seq_len - start - length)
        indices += range(sequence * seq_len + start, sequence * seq_len + start + length)
    return indices, inverse


def make_inputs(generator, device, dtype, *, batch: int, seq_len: int, cols: int, padded_at: str = "right", layout: str = "contiguous") -> dict:
    """Normally distributed x; layout `apart` has rows with a gap behind them, `transposed` sequences beside one another."""
    stored = {"contiguous": (batch, seq_len, cols), "apart": (batch, seq_len, 2 * cols), "transposed": (seq_len, batch, cols)}[layout]
    x = torch.randn(stored, generator=generator, device=generator.device).to(device, dtype)
    x = x.transpose(0, 1) if layout == "transposed" else x[..., :cols]
    return {"x": x, "indices": torch.tensor(places(batch, seq_len, padded_at)[0], dtype=torch.int32, device=device)}


def _hints(failure) -> str | None:
    x, indices = failure.inputs["x"].double(), failure.inputs["indices"].long()
    rows = x.flatten(0, 1)
    return failure.matching([("the first rows of x, padding among them: indices are not looked at", rows[: len(indices)])])


def load_variants() -> Mapping[str, Variant]:
    from labkernels.padding.unpad_variants import VARIANTS

    return VARIANTS


SHAPES = (
    {"batch": 1, "seq_len": 1, "cols": 1},
    {"batch": 3, "seq_len": 5, "cols": 33},
    {"batch": 4, "seq_len": 33, "cols": 64, "padded_at": "left"},
    {"batch": 2, "seq_len": 7, "cols": 24, "layout": "apart"},
    {"batch": 3, "seq_len": 4, "cols": 8, "layout": "transposed"},
)
LARGE_SHAPES = ({"batch": 9, "seq_len": 500, "cols": 2048}, {"batch": 3, "seq_len": 1001, "cols": 129})

OP = Op(
    name="unpad",
    summary="padding taken out: the tokens of padded sequences, one after the other",
    load_variants=load_variants,
    reference=reference,
    native=native,
    problem=problem,
    trivial=lambda x, indices: x.new_zeros((len(indices), x.shape[2])) if x.numel() == 0 or len(indices) == 0 else None,
    make_inputs=make_inputs,
    axes=("token", "col"),
    dtypes=DTYPES,
    small_shapes=SHAPES[1:2],
    check_shapes=SHAPES,
    large_shapes=LARGE_SHAPES,
    tolerance=lambda dtype, **_: Tolerance(relative=1e-7, absolute=1e-12),
    hints=_hints,
    complete_shape=lambda dtype, *, seq_len=2048, batch=16, cols=4096: {"batch": batch, "seq_len": seq_len, "cols": cols},
    sweep={"dtype": ["bfloat16"], "seq_len": [128, 2048]},
    record_sweeps=({"dtype": ["bfloat16"], "seq_len": [128, 2048]},),
    bytes_moved=lambda dtype, *, batch, seq_len, cols, **_: sum(lengths_of(batch, seq_len)) * (2 * cols * dtype.itemsize + 4),
    peers={"torch": Peer("torch", native), "torch.compile": compiled(native)},
)
