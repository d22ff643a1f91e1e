"""What `check` raises, and the facts about a failed case from which its message and its hint are made."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from labkernels.errors import LabKernelsError
from labkernels.lab.error_map import ErrorMap
from labkernels.operation import Op, Shape

REASONS = (
    "wrong_shape",
    "wrong_dtype",
    "not_written",
    "not_finite",
    "mismatch",
    "nondeterministic",
    "input_modified",
    "sanitizer",
    "exception",
)


class CheckFailed(LabKernelsError):
    """An implementation is wrong, for the named `reason` (one of REASONS).

    `where` says which element or argument, `got` and `want` what stood there and what belongs there. `case` names the inputs, `detail`
    is what else is known, `owner` the block and thread that own the element, `error_map` where the result is wrong, `hint` what to look at.
    """

    def __init__(
        self,
        reason: str,
        where: str = "",
        got: Any = None,
        want: Any = None,
        *,
        case: str = "",
        detail: str = "",
        owner: str = "",
        error_map: ErrorMap | None = None,
        hint: str | None = None,
    ):
        if reason not in REASONS:
            raise ValueError(f"CheckFailed: {reason!r} is not a reason; the reasons are {', '.join(REASONS)}")
        self.reason, self.where, self.got, self.want = reason, where, got, want
        self.case, self.detail, self.owner, self.error_map, self.hint = case, detail, owner, error_map, hint
        super().__init__(str(self))

    def __reduce__(self):
        first = (self.reason, self.where, self.got, self.want)
        rest = {name: getattr(self, name) for name in ("case", "detail", "owner", "error_map", "hint")}
        return _rebuild, (type(self), first, rest)

    @property
    def headline(self) -> str:
        """The failure in one line: `mismatch at row 3, col 0: got nan, want 0.0117`."""
        where = f" at {self.where}" if self.where else ""
        values = [f"{word} {_value(value)}" for word, value in (("got", self.got), ("want", self.want)) if value is not None]
        return f"{self.reason}{where}" + (": " + ", ".join(values) if values else "")

    def _parts(self) -> list[tuple[str, str]]:
        named = [("case", self.case), ("detail", self.detail), ("owner", self.owner), ("map", self.error_map), ("hint", self.hint)]
        return [(name, str(value)) for name, value in named if value]

    def __str__(self) -> str:
        lines = [self.headline]
        for name, text in self._parts():
            first, *rest = text.splitlines()
            lines += [f"  {name:<7} {first}", *(" " * 10 + line for line in rest)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        def cell(name, text):
            return self.error_map._repr_html_() if name == "map" else f"<pre style='margin:0'>{html.escape(text)}</pre>"

        rows = "".join(
            f"<tr><th style='text-align:left;vertical-align:top'>{name}</th><td style='text-align:left'>{cell(name, text)}</td></tr>"
            for name, text in self._parts()
        )
        return f"<div><b style='color:#D55E00'>{html.escape(self.headline)}</b><table>{rows}</table></div>"

    def _render_traceback_(self) -> list[str]:
        """In a notebook: the cell's own lines and the message, without the frames of this package."""
        from IPython import get_ipython

        from labkernels.lab.tracebacks import render_traceback

        shell = get_ipython()
        return str(self).splitlines() if shell is None else render_traceback(self, shell)


def _rebuild(cls, first: tuple, rest: dict) -> CheckFailed:
    return cls(*first, **rest)


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@dataclass
class Failure:
    """A wrong result, for those who want to explain it. Tensors lie on the device where the case ran."""

    op: Op
    reason: str
    shape: Shape
    dtype: torch.dtype
    inputs: dict[str, Any]
    got: torch.Tensor
    want: torch.Tensor  # the float64 reference
    allowed: torch.Tensor  # the largest error each element may have
    wrong: torch.Tensor  # True where an element is wrong
    index: tuple[int, ...]  # the first wrong element
    result: str = ""  # the name of the wrong result, where the operation has several

    def matching(self, mistakes: Iterable[tuple[str, torch.Tensor]]) -> str | None:
        """The first of `mistakes`, pairs of a description and the float64 result it would give, that this result equals.

        A mistake must explain every element and differ from the right answer wherever this result is wrong."""
        got = self.got.double()
        for description, result in mistakes:
            near = 4 * self.allowed + 1e-3 * result.abs()
            agrees = ((got - result).abs() <= near) | (got.isnan() & result.isnan())
            if agrees.all():
                return f"Your result is {description}."
        return None

    def last_tile(self) -> str | None:
        """A sentence if every wrong element lies in the last, partial tile of some axis."""
        wrong = self.wrong.nonzero()
        for axis, name in enumerate(self.op.axes[len(self.op.axes) - self.want.dim() :]):
            size = self.want.shape[axis]
            first = int(wrong[:, axis].min())
            for tile in (128, 64, 32, 16, 8, 4):
                edge = size // tile * tile
                if 0 < edge <= first and edge < size:
                    return f"Every wrong element has {name} >= {edge} of {size}, beyond the last whole piece of {tile}."
        return None
