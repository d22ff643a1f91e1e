"""`profile`: exact counters of what a kernel's warps asked of memory, in Nsight Compute's terms, by line of the source."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import pandas

from labkernels.cuda.emulator import toolchain
from labkernels.cuda.emulator.compile import library
from labkernels.cuda.emulator.launch import FINISHED, PROFILER
from labkernels.cuda.emulator.remote import launch_in_child
from labkernels.cuda.source import Source
from labkernels.errors import LaunchError

KINDS = (
    "global_load", "global_store", "global_atomic", "shared_load", "shared_store", "shared_atomic", "local_load", "local_store",
    "barrier", "basic_block",
)  # fmt: skip

# The columns of a profile by line, beside requests and bytes of each kind of access.
_GLOBAL, _SHARED, _LOCAL = KINDS[:3], KINDS[3:6], KINDS[6:8]


@dataclass
class Profile:
    """What one launch asked of memory. All counts are exact and the same in every run.

    Totals are attributes, `<kind>_<counter>`, where kind is global_load, global_store, global_atomic, shared_load, shared_store,
    shared_atomic, local_load or local_store:

    requests    warp instructions            bytes      asked for by all active lanes
    sectors     of 32 bytes, distinct within each request (global memory)
    conflicts   passes through shared memory beyond the fewest possible; two lanes at one word do not conflict

    `by_line` has the same counters by source line, `active_lanes` there is the share of lanes at work in a line's code.
    `bytes_needed` is what had to move at least: each sector of global memory touched, loaded once and stored once.
    """

    kernel: str
    source: Source
    rows: pandas.DataFrame  # file, line, kind, and the counters of each place in the code
    samples: list[dict] = field(repr=False, default_factory=list)
    arrivals: pandas.DataFrame = field(repr=False, default=None)
    bytes_loaded_once: int = 0
    bytes_stored_once: int = 0
    l2_bytes: int = 0
    l2_hits: int = 0
    l2_misses: int = 0

    def __getattr__(self, name: str) -> int:
        for kind in KINDS:
            counter = name.removeprefix(f"{kind}_")
            if counter != name and counter in ("requests", "bytes", "sectors", "conflicts", "lanes"):
                rows = self.rows
                return int(rows.loc[rows["kind"] == kind, counter].sum())
        raise AttributeError(f"a profile has no {name!r}; its counters are like global_load_sectors, see help(Profile)")

    @property
    def barriers(self) -> int:
        """Barriers that warps passed."""
        return self.barrier_requests

    @property
    def bytes_needed(self) -> int:
        return self.bytes_loaded_once + self.bytes_stored_once

    @property
    def bytes_moved(self) -> int:
        """Bytes of all sectors that global accesses touched, each request counted for itself."""
        return 32 * sum(getattr(self, f"{kind}_sectors") for kind in _GLOBAL)

    @cached_property
    def by_line(self) -> pandas.DataFrame:
        """One row for each line of the source that did something: the counters, and the source's text."""
        lines = {}
        for (file, line), group in self.rows.groupby(["file", "line"], sort=True):
            row = {"file": file, "line": line}
            for kind in (*_GLOBAL, *_SHARED, *_LOCAL):
                some = group[group["kind"] == kind]
                row[f"{kind}_requests"], row[f"{kind}_bytes"] = some["requests"].sum(), some["bytes"].sum()
                if kind in _GLOBAL:
                    row[f"{kind}_sectors"] = some["sectors"].sum()
                if kind in _SHARED:
                    row[f"{kind}_conflicts"] = some["conflicts"].sum()
            row["barriers"] = group.loc[group["kind"] == "barrier", "requests"].sum()
            executed = group["requests"].sum()
            row["active_lanes"] = group["lanes"].sum() / (32 * executed) if executed else float("nan")
            row["text"] = (self.source.line(line) or "").strip() if file == self.source.filename else ""
            lines[file, line] = row
        return pandas.DataFrame(list(lines.values()))

    def __repr__(self) -> str:
        parts = []
        for kind in (*_GLOBAL, *_SHARED, *_LOCAL):
            requests = getattr(self, f"{kind}_requests")
            if requests:
                extra = f", {getattr(self, f'{kind}_sectors') / requests:.3g} sectors a request" if kind in _GLOBAL else ""
                extra += f", {getattr(self, f'{kind}_conflicts')} conflicts" if kind in _SHARED else ""
                parts.append(f"  {kind.replace('_', ' '):14} {requests} requests, {getattr(self, f'{kind}_bytes')} bytes{extra}")
        moved = f"  moved {self.bytes_moved} bytes of global memory where {self.bytes_needed} are touched"
        return "\n".join([f"{self.kernel}:", *parts, moved])


def profile(kernel, grid, block, args, shared_mem: int = 0, *, l2_bytes: int = 0, time_limit_s: float | None = 60.0) -> Profile:
    """Run `kernel` once in the emulator and count what its warps ask of memory.

    Takes what a launch takes; tensors must be on the CPU and are left as they were. `l2_bytes` gives the model an L2 cache of that
    size, least recently used out first. Raises CompileError, ArgumentError, and LaunchError where the kernel does not end well.
    """
    grid, block, values = kernel.prepare(grid, block, args, shared_mem)
    path = library(kernel.source, kernel.name, toolchain.PROFILED)
    with launch_in_child(
        kernel, path, grid, block, args, values, shared_mem, watch=PROFILER, time_limit_s=time_limit_s, l2_bytes=l2_bytes
    ) as launch:
        if launch.outcome != FINISHED:
            raise LaunchError(launch.answer["failure"])
    found = launch.answer["profile"]
    places = launch.places([row["pc"] for row in [*found["lines"], *found["samples"]]])
    rows = []
    for row in found["lines"]:
        file, line = places[row["pc"]] or (None, None)
        if file is not None:
            rows.append({**row, "file": file, "line": line, "kind": KINDS[row["kind"]]})
    columns = ["file", "line", "kind", "access_bytes", "requests", "lanes", "bytes", "sectors", "wavefronts", "conflicts"]
    samples = []
    for row in found["samples"]:
        file, line = places[row["pc"]] or (None, None)
        samples.append({**row, "file": file, "line": line, "kind": KINDS[row["kind"]]})
    (totals,) = found["totals"]
    arrivals = pandas.DataFrame(found["arrivals"], columns=["block", "warp", "requests"])
    return Profile(
        kernel.name, kernel.source, pandas.DataFrame(rows, columns=columns), samples, arrivals,
        totals["loaded_bytes"], totals["stored_bytes"], l2_bytes, totals["l2_hits"], totals["l2_misses"],
    )  # fmt: skip
