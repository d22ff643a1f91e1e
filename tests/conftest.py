"""What every test shares: pictures without a screen, and the `gpu` marker.

A test marked `gpu` runs where torch sees an NVIDIA GPU. Elsewhere it is skipped, and the last lines of the run say
how many such tests there are, so that a green run on a laptop never looks like a run on a GPU.
"""
from __future__ import annotations

import matplotlib
import pytest
import torch

matplotlib.use("agg")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu"):
            item.user_properties.append(("gpu", True))
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


def pytest_terminal_summary(terminalreporter) -> None:
    outcomes = {
        outcome: sum(("gpu", True) in report.user_properties for report in terminalreporter.getreports(outcome))
        for outcome in ("passed", "failed", "skipped")
    }
    if not any(outcomes.values()):
        return
    terminalreporter.section("GPU")
    if torch.cuda.is_available():
        ran = f"{outcomes['passed']} passed, {outcomes['failed']} failed on {torch.cuda.get_device_name()}"
        terminalreporter.line(f"gpu tests: {ran}")
    else:
        terminalreporter.line(f"gpu tests: {outcomes['skipped']} not run, no NVIDIA GPU here (make gpu-test runs them)")
