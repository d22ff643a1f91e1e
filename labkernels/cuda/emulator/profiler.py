"""`profile`: one launch in the emulator, every request of its warps to memory counted, in Nsight Compute's terms."""

from __future__ import annotations

import pandas
import torch

from labkernels.cuda.emulator import toolchain
from labkernels.cuda.emulator.compile import library
from labkernels.cuda.emulator.counters import COUNTERS, KINDS, Profile, ProfiledLaunch, Request
from labkernels.cuda.emulator.launch import FINISHED, PROFILER
from labkernels.cuda.emulator.remote import launch_in_child
from labkernels.errors import CompileError, LaunchError, ToolchainError


def profile(
    kernel, grid, block, args, shared_mem: int = 0, *, cluster=None, l2_bytes: int = 0, ncu: bool = False,
    time_limit_s: float | None = 60.0, write_back: bool = False,
) -> Profile:  # fmt: skip
    """Run `kernel` once in the emulator and count what its warps ask of memory.

    Takes what a launch takes, and leaves the tensors as they were (or, with `write_back`, as the kernel leaves them); those on a GPU
    are copied. Counts are exact and the same in every run. `l2_bytes` adds a model of an L2 cache of that size, least recently used out first; blocks run one after another in it.
    `ncu` runs the launch under Nsight Compute too, on this machine's GPU: see `Profile.with_ncu`.

    Raises CompileError, ArgumentError, LaunchError where the kernel does not end well, and ToolchainError where `ncu` cannot run.
    """
    launched = ProfiledLaunch(kernel, grid, block, tuple(args) if isinstance(args, list) else args, shared_mem, cluster)
    args = _on_cpu(args)
    grid, block, values, cluster = kernel.prepare(grid, block, args, shared_mem, cluster, toolchain.PROFILED)
    path = library(kernel.source, kernel.name, toolchain.PROFILED)
    with launch_in_child(
        kernel, path, grid, block, args, values, shared_mem, cluster=cluster, watch=PROFILER, time_limit_s=time_limit_s, l2_bytes=l2_bytes
    ) as launch:
        if launch.outcome != FINISHED:
            raise LaunchError(launch.answer["failure"])
        if write_back:
            launch.write_back()
        arrays = [name for name, _, _ in launch.arrays()]
    found = launch.answer["profile"]
    places = launch.places([row["pc"] for row in [*found["lines"], *found["samples"]]])
    rows = [
        {**row, "file": place[0], "line": place[1], "kind": KINDS[row["kind"]]} for row in found["lines"] if (place := places[row["pc"]])
    ]
    if any(row["kind"].startswith("local") for row in rows) and not _has_stack(kernel):
        rows = [row for row in rows if not row["kind"].startswith("local")]
    samples = [_request(row, *place, arrays) for row in found["samples"] if (place := places[row["pc"]])]
    (totals,) = found["totals"]
    made = Profile(
        kernel=kernel.name,
        source=kernel.source,
        rows=pandas.DataFrame(rows, columns=["file", "line", "kind", "pc", "access_bytes", *COUNTERS]),
        samples=samples,
        arrivals=pandas.DataFrame(found["arrivals"], columns=["block", "warp", "requests"]),
        bytes_loaded_once=totals["loaded_bytes"],
        bytes_stored_once=totals["stored_bytes"],
        l2_bytes=l2_bytes,
        l2_hits=totals["l2_hits"],
        l2_misses=totals["l2_misses"],
        launched=launched,
    )
    return made.with_ncu() if ncu else made


def _has_stack(kernel) -> bool:
    """Whether a GPU's compiler gives the kernel local memory: arrays whose indices it can work out live in registers."""
    try:
        return kernel.resources().stack_bytes > 0
    except (CompileError, ToolchainError):  # no compiler for GPUs here, or none that takes this source: count what g++ kept in memory
        return True


def _request(row: dict, file: str, line: int, arrays: list[str]) -> Request:
    """A sampled request, its addresses counted from where its array begins."""
    array = arrays[row["array"]] if 0 <= row["array"] < len(arrays) else "local memory"
    addresses = {lane: row["address"][lane] - row["low"] for lane in range(32) if row["active"] >> lane & 1}
    return Request(
        file=file, line=line, pc=row["pc"], kind=KINDS[row["kind"]], bytes=row["bytes"], block=row["block"], warp=row["warp"],
        array=array, array_begins=row["low"] % 4096, addresses=addresses,
    )  # fmt: skip


def _on_cpu(args):
    """The arguments with tensors of a GPU copied to the CPU, laid out as they were; tensors that shared memory still do."""
    if not any(isinstance(value, torch.Tensor) and value.device.type != "cpu" for value in args):
        return args
    storages = {}
    moved = []
    for value in args:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            copy = storages.setdefault(storage.data_ptr(), storage.cpu())
            value = torch.empty(0, dtype=value.dtype).set_(copy, value.storage_offset(), value.shape, value.stride())
        moved.append(value)
    return tuple(moved)
