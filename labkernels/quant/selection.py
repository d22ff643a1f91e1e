"""Which variant multiplies: the one that was fastest where it was measured, at the nearest shape of `selection_table.py`.

    python -m labkernels.quant.selection data/measured/h200/quant_matmul.csv      # writes the table anew from recorded figures

The ladder's order does not decide: with one row of x the stream wins (v6), up to some 16 mostly x in registers (v7), beyond it the tensor cores' tiles
(v5), and where one overtakes the other depends on the shape and on the scheme. `lk.explain("quant_matmul", x, weight)` shows the figures for which a variant was not chosen.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from labkernels.quant.selection_table import GPU, MICROSECONDS

TABLE = Path(__file__).with_name("selection_table.py")
GEMVS = ("v2_gemv", "v3_lut")  # what to do where nothing was measured: these, where they can
_LIKE = {"codebook": "nf4"}  # schemes that run the same kernels


@lru_cache(maxsize=4096)
def nearest(scheme: str, m: int, n: int, k: int) -> tuple[tuple[int, int, int], Mapping[str, float]] | None:
    """The measured (m, n, k) nearest to this one, by ratios, with the microseconds of each variant there, the fastest first; None if there is none of the scheme."""
    scheme = _LIKE.get(scheme, scheme)
    measured = {shape: times for (of, *shape_), times in MICROSECONDS.items() if of == scheme for shape in [tuple(shape_)]}
    if not measured:
        return None

    def distance(shape: tuple[int, int, int]) -> float:  # rows of x first: it is they that decide between kernels
        return 4 * abs(math.log(max(1, m) / shape[0])) + abs(math.log(max(1, n) / shape[1])) + abs(math.log(max(1, k) / shape[2]))

    shape = min(measured, key=distance)
    return shape, dict(sorted(measured[shape].items(), key=lambda item: item[1]))


def slower(name: str, x, weight, capable: Mapping[str, Callable[..., str | None]]) -> str | None:
    """Why another variant than `name`, which can, is to run, with the figures; None if none is. `capable` says what each cannot take.

    Never for a weight of `any_variant`. On CPU tensors the figures are the same: the emulator plays that GPU.
    """
    if weight.any_variant:
        return None
    found = nearest(weight.scheme, x.shape[0], *weight.shape)
    if found is None:
        best = next((other for other in GEMVS if other == name or capable[other](x, weight) is None), name)
        return None if best == name else f"not measured; up to 8 rows of x {best} runs, which reads the weight at the speed of memory"
    (m, n, k), times = found
    for other, us in times.items():  # the fastest first
        if other == name:
            return None
        if other in capable and capable[other](x, weight) is None:
            own = f"{times[name]:.1f} us" if name in times else "not measured"
            rows = "1 row" if m == 1 else f"{m} rows"
            where = f"{GPU}, whose choice the emulator makes" if x.device.type == "cpu" else GPU
            return f"{other} is faster on an {where}: {us:.1f} us, this {own} ({rows} of x, weight {n} x {k}, the nearest that were measured)"
    return None


def write_table(csv: str | Path, target: Path = TABLE) -> None:
    """Make `target` of the recorded figures in `csv`."""
    import pandas

    frame = pandas.read_csv(csv)
    frame = frame[(frame["kind"] == "ours") & (frame["dtype"] == "bfloat16") & (frame["variant"] != "v1_naive") & frame["ms"].notna()]
    frame = frame[frame["group_size"].isin([0, 128])]
    lines = []
    for (scheme, m, n, k), rows in frame.groupby(["scheme", "m", "n", "k"]):
        times = ", ".join(f'"{variant}": {1e3 * ms:.2f}' for variant, ms in zip(rows["variant"], rows["ms"]))
        lines.append(f'    ("{scheme}", {m}, {n}, {k}): {{{times}}},')
    target.write_text(
        f'"""Microseconds of `quant_matmul`\'s variants by (scheme, m, n, k), written by labkernels/quant/selection.py from recorded figures."""\n\n'
        f'GPU = "{frame["gpu"].iloc[0]}"\nMICROSECONDS: dict[tuple[str, int, int, int], dict[str, float]] = {{\n' + "\n".join(lines) + "\n}\n"
    )


if __name__ == "__main__":
    write_table(sys.argv[1])
