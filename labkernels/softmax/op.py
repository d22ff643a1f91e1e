"""The operation `softmax` over the last axis. What it is, on what it is judged, and what it costs.

Elements of -inf have probability 0, wherever they stand; causal masks make such rows. A row of nothing but -inf has no softmax:
no variant needs to define it, and the checker never hands one out.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch

from labkernels.operation import Op, Peer, Tolerance, Variant, dtype_name


def reference(x: torch.Tensor) -> torch.Tensor:
    """exp(x - max) / sum(exp(x - max)) over the columns of x (rows, cols)."""
    weights = (x - x.amax(dim=-1, keepdim=True)).exp()
    return weights / weights.sum(dim=-1, keepdim=True)


def native(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x, dim=-1)


def problem(x: torch.Tensor) -> str | None:
    if x.dim() != 2:
        return f"x has shape {tuple(x.shape)}; it must have two axes, (rows, cols)"
    if x.dtype not in OP.dtypes:
        return f"x is {dtype_name(x.dtype)}; it must be {' or '.join(map(dtype_name, OP.dtypes))}"
    return None


def make_inputs(
    generator, device, dtype, *,
    rows: int, cols: int, magnitude: float = 1.0, offset: float = 0.0, mask: str = "none", layout: str = "contiguous",
) -> dict:
    """x (rows, cols), normally distributed around `offset`. Masks put -inf at the start of each row, after the diagonal, or at a
    third of the places; at least one element of each row stays finite. Layouts other than contiguous are strided views."""
    stored = {"contiguous": (rows, cols), "transposed": (cols, rows), "every_second": (rows, 2 * cols)}[layout]
    values = (offset + magnitude * torch.randn(stored, generator=generator, device=generator.device)).to(device, dtype)
    x = {"contiguous": values, "transposed": values.t(), "every_second": values[:, ::2]}[layout]
    row = torch.arange(rows, device=device)[:, None]
    col = torch.arange(cols, device=device)[None, :]
    if mask == "start":
        x.masked_fill_(col < (row + 1) * cols // (rows + 1), -torch.inf)
    elif mask == "causal":
        x.masked_fill_(col > row, -torch.inf)
    elif mask == "scattered":
        x.masked_fill_(((7 * row + 5 * col) % 3 == 0) & (col != row % cols), -torch.inf)
    return {"x": x}


def tolerance(dtype: torch.dtype, *, cols: int, **_) -> Tolerance:
    """Fast exponentials err by some 30 units in the last place, a sum of `cols` terms by some sqrt(cols)."""
    epsilon = torch.finfo(torch.float32).eps
    return Tolerance(relative=epsilon * (64 + 4 * cols**0.5), absolute=1e-10)


def hints(failure) -> str | None:
    """Name the classic mistake whose result this is."""
    x, got = failure.inputs["x"].double(), failure.got.double()
    if failure.reason == "not_finite":
        row = failure.index[0]
        masked = int((x[row] != -torch.inf).int().argmax())
        if masked > 0 and got[row].isnan().any():
            return f"Row {row} is all -inf up to col {masked - 1}: what is exp(-inf - -inf)?"
        if x[row].max() < -80:
            return f"Row {row} has nothing above {x[row].max():.0f}, and exp({x[row].max():.0f}) is 0 in float32. Does your maximum begin with 0?"
        if x[row][x[row].isfinite()].abs().max() > 80:
            return f"Row {row} holds values up to {x[row].max():.0f}, and exp(89) is more than a float32 can hold: subtract the maximum."
        if got[row].isnan().any() and x.shape[1] < 32:
            return f"Row {row} is shorter than a warp, and a lane that gets no element still holds -inf: what is exp(-inf - -inf)?"
        return None
    weights = (x - x.amax(dim=-1, keepdim=True)).exp()
    mistakes = [("exp(x - max): the division by the sum is missing", weights), ("exp(x): the division by the sum is missing", x.exp())]
    if x.shape[0] > 1:
        mistakes += [("the softmax over each column instead of each row", torch.softmax(x, dim=0))]
    lane = torch.arange(x.shape[1], device=x.device) % 32
    of_lane = weights.new_zeros(x.shape[0], 32).index_add_(1, lane, weights)
    mistakes += [("divided by each lane's own sum: the 32 lanes have not met", weights / of_lane[:, lane])]
    total = weights.sum(dim=-1, keepdim=True)
    mistakes += [("divided by 32 times the sum: every lane has walked over every column", weights / (32 * total))]
    mistakes += [("divided by the number of columns, as if sums measured against different maxima had been added", weights / x.shape[1])]
    running = x.cummax(dim=-1).values
    unscaled = (x - running).exp().nan_to_num(0.0).cumsum(-1)[:, -1:]
    mistakes += [("what comes out when the sum is not rescaled as the running maximum grows", weights / unscaled)]
    for width in (32, 64, 128, 256, 512, 1024):
        if width < x.shape[1]:
            part = weights[:, :width].sum(dim=-1, keepdim=True)
            mistakes += [(f"divided by the sum of the first {width} of {x.shape[1]} columns only", weights / part)]
    return failure.matching(mistakes)


@lru_cache(maxsize=64)
def _compiled(shape: torch.Size, dtype: torch.dtype):
    torch.compiler.reset()
    return torch.compile(native, dynamic=False)


def _torch_compile(x: torch.Tensor) -> torch.Tensor:
    return _compiled(x.shape, x.dtype)(x)


def load_variants() -> Mapping[str, Variant]:
    from labkernels.softmax.variants import VARIANTS

    return VARIANTS


OP = Op(
    name="softmax",
    summary="exp(x - max) / sum over the last axis",
    load_variants=load_variants,
    reference=reference,
    native=native,
    problem=problem,
    make_inputs=make_inputs,
    axes=("row", "col"),
    dtypes=(torch.float32, torch.bfloat16),
    small_shapes=tuple({"rows": rows, "cols": cols} for rows, cols in ((1, 1), (3, 33), (2, 70))),
    check_shapes=(
        *(
            {"rows": rows, "cols": cols}
            for rows, cols in (
                (1, 1), (1, 3), (3, 1), (3, 33), (2, 31), (5, 32), (33, 5), (7, 64), (4, 100), (2, 128), (3, 257), (2, 1000), (1, 2049)
            )
        ),
        {"rows": 4, "cols": 33, "mask": "start"},
        {"rows": 5, "cols": 257, "mask": "start"},
        {"rows": 40, "cols": 40, "mask": "causal"},
        {"rows": 3, "cols": 100, "mask": "scattered"},
        {"rows": 6, "cols": 65, "magnitude": 1e4},
        {"rows": 2, "cols": 40, "offset": -200.0},
        {"rows": 6, "cols": 50, "layout": "transposed"},
        {"rows": 3, "cols": 64, "layout": "every_second"},
    ),
    large_shapes=(
        {"rows": 4096, "cols": 1000},
        {"rows": 100_003, "cols": 33},
        {"rows": 8, "cols": 65_536},
        {"rows": 2, "cols": 250_001, "mask": "start"},
        {"rows": 2048, "cols": 2048, "mask": "causal"},
    ),
    tolerance=tolerance,
    hints=hints,
    complete_shape=lambda dtype, *, cols, rows=None: {"rows": rows or max(1, 2**26 // cols), "cols": cols},
    sweep={"dtype": ["float32"], "cols": [256, 1024, 8192, 65_536]},
    record_sweeps=({"dtype": ["float32", "bfloat16"], "cols": [256, 1024, 4096, 8192, 16_384, 65_536]},),
    flops=lambda *, rows, cols, **_: 4 * rows * cols,
    bytes_moved=lambda dtype, *, rows, cols, **_: 2 * rows * cols * dtype.itemsize,
    peers={"torch": Peer("torch", native), "torch.compile": Peer("torch.compile", _torch_compile)},
)
