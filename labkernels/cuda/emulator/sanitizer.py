"""`sanitize`: one launch in the emulator, every access watched, what is wrong reported in words."""

from __future__ import annotations

from collections.abc import Sequence

from labkernels.cuda.emulator import toolchain
from labkernels.cuda.emulator.compile import library
from labkernels.cuda.emulator.findings import Describer, Finding, SanitizerReport
from labkernels.cuda.emulator.launch import FAILED, FINISHED, SANITIZER, TIMEOUT
from labkernels.cuda.emulator.remote import launch_in_child
from labkernels.errors import LaunchError


def sanitize(
    kernel, grid, block, args, shared_mem: int = 0, *, cluster=None, early: bool = False, at_rest: Sequence = (), time_limit_s: float = 10.0,
    write_back: bool = False,
) -> SanitizerReport:  # fmt: skip
    """Run `kernel` once in the emulator, watching every access, and report what is wrong.

    `early` watches it as a launch with early=True, which may begin before the kernel before it has ended: of its tensors a thread may touch only those
    `at_rest`, which no kernel in flight writes (weights), until it has called grid_dependency_wait(), or knows by a barrier of one that has.

    Takes what a launch takes; tensors must be on the CPU and are left as they were unless `write_back`. Runs in a child process,
    so that nothing the kernel does can hurt this one, on one core and in a fixed order: the same report every time. Raises
    CompileError, ArgumentError, and LaunchError where the kernel itself gave up (assert, __trap, integer division by zero).
    """
    grid, block, values, cluster = kernel.prepare(grid, block, args, shared_mem, cluster, toolchain.SANITIZED)
    path = library(kernel.source, kernel.name, toolchain.SANITIZED)
    with launch_in_child(
        kernel, path, grid, block, args, values, shared_mem, cluster=cluster, watch=SANITIZER, time_limit_s=time_limit_s,
        at_rest=at_rest if early else None,
    ) as launch:
        if write_back and launch.outcome == FINISHED:
            launch.write_back()
        arrays = launch.arrays()
    rows = launch.answer["findings"]
    gave_up = next((row["text"] for row in rows if row["text"].startswith("integer division")), None)
    if gave_up:
        raise LaunchError(f"{kernel.name}: {gave_up}")
    places = launch.places([row[pc] for row in rows for pc in ("pc", "other_pc")])
    describer = Describer(kernel.name, kernel.source, grid, block, arrays, places.get)
    findings = [finding for row in rows if (finding := describer.describe(row)) is not None]
    if launch.outcome == FAILED or (launch.outcome not in (FINISHED, TIMEOUT) and not findings):
        raise LaunchError(launch.answer["failure"])
    return SanitizerReport(kernel.name, _most_telling(findings), kernel.source)


def _most_telling(findings: list[Finding]) -> list[Finding]:
    """Findings of one kind at one line are one mistake: the first of each. Who reads too early also reads the unwritten: a race."""
    raced = {finding.array for finding in findings if finding.kind == "race"}
    kept: dict[tuple, Finding] = {}
    for finding in findings:
        if finding.kind != "uninitialized" or finding.array not in raced:
            kept.setdefault((finding.kind, finding.file, finding.line, finding.array), finding)
    return list(kept.values())
