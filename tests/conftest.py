"""What every test shares: a process's share of the cores, pictures without a screen, the order, and the `gpu` marker.

A test marked `gpu` runs where torch sees an NVIDIA GPU. Elsewhere it is skipped, and the last lines of the run say
how many such tests there are, so that a green run on a laptop never looks like a run on a GPU.
"""
from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import matplotlib
import pytest
import torch

from tests import warm_kernels

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # threads that wait for one another without a core of their own take twice as long
    share = max(1, len(os.sched_getaffinity(0)) // workers)
    os.environ["OMP_NUM_THREADS"] = str(share)  # for processes that tests start, kernels of notebooks among them
    torch.set_num_threads(share)

matplotlib.use("agg")


@pytest.fixture(scope="session")
def jupyter_path() -> Iterator[str]:
    """For `warm_kernels.used`: where Jupyter finds kernels that have imported torch and labkernels before they start."""
    from labkernels.classroom.execute import cpu_environment    # needs nbclient, which a machine for GPU tests may lack

    with warm_kernels.started(cpu_environment()) as path:
        yield path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "notebooks" not in item.path.parts)  # the longest tests first: at the end no process waits for the other
    for item in items:
        if item.get_closest_marker("gpu"):
            item.user_properties.append(("gpu", True))
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


def pytest_collection_finish() -> None:
    set_aside()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is not None and nextitem.path != item.path:
        set_aside()


def set_aside() -> None:
    """What is alive after a file of tests stays: the garbage collector need not walk over it again, a third of a second each time."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter) -> None:
    gpu = {outcome: [report for report in terminalreporter.getreports(outcome) if ("gpu", True) in getattr(report, "user_properties", ())]
           for outcome in ("passed", "failed", "error", "skipped")}
    terminalreporter.section("not run, and on a GPU")
    for report in terminalreporter.getreports("skipped"):
        if report not in gpu["skipped"]:
            terminalreporter.line(f"skipped {report.nodeid}: {report.longrepr[2]}")
    if torch.cuda.is_available():
        wrong = len(gpu["failed"]) + len(gpu["error"])
        terminalreporter.line(f"gpu tests: {len(gpu['passed'])} passed, {wrong} failed on {torch.cuda.get_device_name()}")
    else:
        terminalreporter.line(f"gpu tests: {len(gpu['skipped'])} not run, no NVIDIA GPU here (make gpu-test runs them)")
