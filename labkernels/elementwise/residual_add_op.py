"""The operation `residual_add`: x + residual, with the bias of the layer before if there is one."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.elementwise.peers import compiled
from labkernels.elementwise.rows import dtype_and_device_problem
from labkernels.operation import Op, Peer, Tolerance, Variant

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def reference(x: torch.Tensor, residual: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x + residual + bias; x and residual (rows, cols), bias (cols,)."""
    return x + residual if bias is None else x + residual + bias


def problem(x: torch.Tensor, residual: torch.Tensor, bias: torch.Tensor | None = None) -> str | None:
    if x.dim() < 1:
        return "x has no axes; it must have at least one, (..., cols)"
    if residual.shape != x.shape:
        return f"residual has shape {tuple(residual.shape)}, x has {tuple(x.shape)}; both must be equal"
    if bias is not None and bias.shape != x.shape[-1:]:
        return f"bias has shape {tuple(bias.shape)}; it must be one number a column of x, ({x.shape[-1]},)"
    return dtype_and_device_problem({"x": x, "residual": residual, "bias": bias}, DTYPES)


def make_inputs(generator, device, dtype, *, rows: int, cols: int, bias: bool = False, layout: str = "contiguous") -> dict:
    """Normally distributed; layout `apart` has rows with a gap behind them, `transposed` is a view of (cols, rows)."""

    def tensor(*shape):
        return torch.randn(shape, generator=generator, device=generator.device).to(device, dtype)

    def matrix():
        stored = {"contiguous": (rows, cols), "apart": (rows, 2 * cols), "transposed": (cols, rows)}[layout]
        return tensor(*stored).t() if layout == "transposed" else tensor(*stored)[:, :cols]

    return {"x": matrix(), "residual": matrix(), "bias": tensor(cols) if bias else None}


def bytes_moved(dtype: torch.dtype, *, rows: int, cols: int, bias: bool = False, **_) -> int:
    return (3 * rows * cols + bias * cols) * dtype.itemsize


def hints(failure) -> str | None:
    """Name the classic mistake whose result this is."""
    x, residual, bias = (value.double() if value is not None else None for value in failure.inputs.values())
    mistakes = [("x alone: the residual is missing", x), ("the residual alone: x is missing", residual)]
    mistakes += [] if bias is None else [("x + residual: the bias is missing", x + residual)]
    return failure.matching(mistakes)


def load_variants() -> Mapping[str, Variant]:
    from labkernels.elementwise.residual_add_variants import VARIANTS

    return VARIANTS


OP = Op(
    name="residual_add",
    summary="x + residual, and a bias",
    load_variants=load_variants,
    reference=reference,
    native=reference,
    problem=problem,
    trivial=lambda x, residual, bias=None: torch.empty_like(x) if x.numel() == 0 else None,
    make_inputs=make_inputs,
    axes=("row", "col"),
    dtypes=DTYPES,
    small_shapes=({"rows": 1, "cols": 1}, {"rows": 3, "cols": 33, "bias": True}, {"rows": 3, "cols": 24, "layout": "apart"}),
    check_shapes=(
        {"rows": 1, "cols": 1},
        {"rows": 3, "cols": 33},
        {"rows": 5, "cols": 64, "bias": True},
        {"rows": 2, "cols": 1003, "bias": True},
        {"rows": 6, "cols": 72, "layout": "apart", "bias": True},
        {"rows": 7, "cols": 9, "layout": "transposed"},
    ),
    large_shapes=({"rows": 1000, "cols": 4096, "bias": True}, {"rows": 777, "cols": 1001}),
    tolerance=lambda dtype, **_: Tolerance(relative=2 * torch.finfo(torch.float32).eps, absolute=1e-6),
    hints=hints,
    complete_shape=lambda dtype, *, rows=16_384, cols=4096, bias=False: {"rows": rows, "cols": cols, "bias": bias},
    sweep={"dtype": ["bfloat16"], "rows": [256, 16_384]},
    record_sweeps=(
        {"dtype": ["bfloat16"], "rows": [256, 16_384, 65_536]},
        {"dtype": ["bfloat16"], "bias": [True], "rows": [16_384]},
    ),
    flops=lambda *, rows, cols, bias=False, **_: (1 + bias) * rows * cols,
    bytes_moved=bytes_moved,
    peers={"torch": Peer("torch", reference), "torch.compile": compiled(reference)},
)
