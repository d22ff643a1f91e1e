"""What the profiler counted: totals of a launch, the same by source line, and some of its requests lane by lane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import pandas

from labkernels.cuda.source import Source
from labkernels.errors import ArgumentError

# In the order of the runtime's kinds of events (shim/profiler.h).
GLOBAL = ("global_load", "global_store", "global_atomic")
SHARED = ("shared_load", "shared_store", "shared_atomic")
LOCAL = ("local_load", "local_store")
ACCESSES = (*GLOBAL, *SHARED, *LOCAL)
KINDS = (*ACCESSES, "barrier", "basic_block")

COUNTERS = ("requests", "lanes", "bytes", "sectors", "wavefronts", "conflicts", "divergent")
_OF_KIND = {
    **dict.fromkeys(GLOBAL, ("requests", "bytes", "sectors")),
    **dict.fromkeys(SHARED, ("requests", "bytes", "wavefronts", "conflicts")),
    **dict.fromkeys(LOCAL, ("requests", "bytes")),
}
TOTALS = {f"{kind}_{counter}": (kind, counter) for kind, counters in _OF_KIND.items() for counter in counters}


class ProfiledLaunch(NamedTuple):
    """The launch that was profiled, to be repeated on a GPU."""

    kernel: object
    grid: int | Sequence[int]
    block: int | Sequence[int]
    args: tuple
    shared_mem: int
    cluster: int | Sequence[int] | None = None


@dataclass(frozen=True)
class Request:
    """One request of a warp. `addresses` are bytes from the beginning of `array`, by active lane."""

    file: str
    line: int
    pc: int  # tells requests of one line apart
    kind: str
    bytes: int  # asked for by one lane
    block: int
    warp: int
    array: str
    array_begins: int  # the array's own address, modulo 4096: where its sectors begin
    addresses: dict[int, int]


@dataclass
class Profile:
    """What one launch asked of memory. All counts are exact and the same in every run.

    Totals are attributes, `<kind>_<counter>`, where kind is global_load, global_store, global_atomic, shared_load, shared_store,
    shared_atomic, local_load or local_store:

    requests    instructions that warps executed        bytes      asked for by all active lanes
    sectors     of 32 bytes, distinct in each request; sectors_per_request is their mean (global memory)
    wavefronts  passes through shared memory            conflicts  those beyond the fewest possible; lanes at one word do not conflict

    `by_line` has the same counters for each line of the source. In a notebook a profile shows as the source with its counters.
    """

    kernel: str
    source: Source
    rows: pandas.DataFrame  # file, line, kind, and the counters of each place in the code
    samples: list[Request] = field(repr=False, default_factory=list)
    arrivals: pandas.DataFrame = field(repr=False, default=None)  # block, warp, requests made, at each barrier
    bytes_loaded_once: int = 0
    bytes_stored_once: int = 0
    l2_bytes: int = 0
    l2_hits: int = 0  # sectors found in the L2 of `l2_bytes`
    l2_misses: int = 0
    ncu: dict[str, int] | None = None  # what Nsight Compute counted on a GPU, by the names above
    launched: ProfiledLaunch | None = field(repr=False, default=None)

    def __getattr__(self, name: str):
        if name in TOTALS:
            kind, counter = TOTALS[name]
            rows = self.rows
            return int(rows.loc[rows["kind"] == kind, counter].sum())
        kind = name.removesuffix("_sectors_per_request")
        if kind in GLOBAL and kind != name:
            return _ratio(getattr(self, f"{kind}_sectors"), getattr(self, f"{kind}_requests"))
        raise AttributeError(f"a profile has no {name!r}; its counters are like global_load_sectors, see help(Profile)")

    def __dir__(self):
        return sorted([*super().__dir__(), *TOTALS, *(f"{kind}_sectors_per_request" for kind in GLOBAL)])

    @property
    def bank_conflicts(self) -> int:
        """Passes through shared memory beyond the fewest possible, of loads, stores and atomics together."""
        return sum(getattr(self, f"{kind}_conflicts") for kind in SHARED)

    @property
    def barriers(self) -> int:
        """How often a warp came to a `__syncthreads`."""
        return int(self.rows.loc[self.rows["kind"] == "barrier", "requests"].sum())

    @property
    def divergent_branches(self) -> int:
        """How often lanes of a warp that went together parted."""
        return int(self.rows["divergent"].sum())

    @property
    def active_lanes(self) -> float:
        """The share of lanes at work, in the mean over all that warps executed."""
        return _ratio(self.rows["lanes"].sum(), 32 * self.rows["requests"].sum())

    @property
    def bytes_needed(self) -> int:
        """What global memory had to move at least: each sector touched, loaded once and stored once."""
        return self.bytes_loaded_once + self.bytes_stored_once

    @property
    def bytes_moved(self) -> int:
        """Bytes of all sectors that global accesses touched, each request counted for itself, as if there were no cache."""
        return 32 * sum(getattr(self, f"{kind}_sectors") for kind in GLOBAL)

    @cached_property
    def by_line(self) -> pandas.DataFrame:
        """One row for each line that did something: file, line, the counters, and the line's text.

        `active_lanes` is the share of lanes at work in the line. `divergent_branches` counts how often a warp came to the line and
        left lanes behind that had been with it.
        """
        lines = []
        for (file, line), group in self.rows.groupby(["file", "line"], sort=True):
            row = {"file": file, "line": line}
            for kind, counters in _OF_KIND.items():
                some = group[group["kind"] == kind]
                row |= {f"{kind}_{counter}": some[counter].sum() for counter in counters}
                if kind in GLOBAL:
                    row[f"{kind}_sectors_per_request"] = _ratio(row[f"{kind}_sectors"], row[f"{kind}_requests"])
            row["barriers"] = group.loc[group["kind"] == "barrier", "requests"].sum()
            row["divergent_branches"] = group["divergent"].sum()
            row["active_lanes"] = _ratio(group["lanes"].sum(), 32 * group["requests"].sum())
            row["text"] = (self.source.line(line) or "").strip() if file == self.source.filename else ""
            lines.append(row)
        return pandas.DataFrame(lines)

    @classmethod
    def together(cls, profiles: Sequence[Profile]) -> Profile:
        """Several launches as one: their counts added up. Raises ValueError if there is none."""
        if not profiles:
            raise ValueError("Profile.together: no launch to add up")
        if len(profiles) == 1:
            return profiles[0]
        summed = {name: sum(getattr(p, name) for p in profiles) for name in ("bytes_loaded_once", "bytes_stored_once", "l2_hits", "l2_misses")}
        return cls(
            kernel=", ".join(dict.fromkeys(p.kernel for p in profiles)),
            source=profiles[0].source,
            rows=pandas.concat([p.rows for p in profiles], ignore_index=True),
            samples=[sample for p in profiles for sample in p.samples],
            l2_bytes=profiles[0].l2_bytes,
            **summed,
        )

    def line_of(self, what: int | str) -> int:
        """The number of a line of the source, from that number or from a piece of the line's text, such as `"out["`.

        Raises ArgumentError where no line that touches memory has it.
        """
        if isinstance(what, int):
            return what
        lines = self.by_line
        lines = lines[(lines["file"] == self.source.filename) & (lines[[f"{kind}_requests" for kind in ACCESSES]].sum(axis=1) > 0)]
        found = [row.line for row in lines.itertuples() if what in row.text]
        if not found:
            there = "; ".join(f"{row.line}: {row.text}" for row in lines.itertuples())
            raise ArgumentError(f"{self.kernel}: no line with {what!r} touches memory; these lines do: {there}")
        return int(found[0])

    def with_ncu(self) -> Profile:
        """The same profile with Nsight Compute's counters beside the emulator's, of the same launch on this machine's GPU.

        The launch is repeated in a process of its own, on copies of the tensors as they are now; what it counted is kept on disk.
        Raises ToolchainError where there is no GPU, where `ncu` is not installed, or where it may not read the GPU's counters.
        """
        from labkernels.cuda.ncu import count

        return replace(self, ncu=count(*self.launched))

    @property
    def compared(self) -> pandas.DataFrame:
        """The counters that Nsight Compute gave, beside the emulator's; empty without `with_ncu`."""
        rows = [(name, getattr(self, name), value) for name, value in (self.ncu or {}).items()]
        return pandas.DataFrame(rows, columns=["counter", "emulator", "ncu"])

    def plot_line(self, line: int | str, kind: str | None = None):
        """A picture of one request of each access in `line` (its number, or a piece of its text): what its lanes touch, in sectors, or
        in the banks of shared memory. `kind`, such as "shared_load", leaves the others out."""
        from labkernels.lab.profile_plots import plot_line

        return plot_line(self, self.line_of(line), kind)

    def plot_barriers(self):
        """A picture of how far the warps of the first blocks were, in requests made, when they came to each barrier."""
        from labkernels.lab.profile_plots import plot_barriers

        return plot_barriers(self)

    def __repr__(self) -> str:
        parts = []
        for kind in ACCESSES:
            requests = getattr(self, f"{kind}_requests")
            if requests:
                extra = f", {getattr(self, f'{kind}_sectors_per_request'):.3g} sectors a request" if kind in GLOBAL else ""
                extra += f", {getattr(self, f'{kind}_conflicts')} conflicts" if kind in SHARED else ""
                parts.append(f"  {kind.replace('_', ' '):14} {requests} requests, {getattr(self, f'{kind}_bytes')} bytes{extra}")
        parts.append(f"  moved {self.bytes_moved} bytes of global memory where {self.bytes_needed} are touched")
        if self.l2_bytes:
            parts.append(f"  L2 of {self.l2_bytes} bytes: {self.l2_hits} sectors hit, {self.l2_misses} missed")
        if self.ncu is not None:
            parts += ["", self.compared.to_string(index=False)]
        return "\n".join([f"{self.kernel}:", *parts])

    def _repr_html_(self) -> str:
        from labkernels.lab.profile_view import as_html

        return as_html(self)


def _ratio(part, whole) -> float:
    return float(part / whole) if whole else float("nan")
