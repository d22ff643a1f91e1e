"""`labkernels bench`: tables of every operation asked for; recording needs a GPU and says so."""

import pytest
import torch
from typer.testing import CliRunner

from labkernels.cli import app
from labkernels.lab import bench as benchmark
from labkernels.operation import ops


def run(*arguments):
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    return result.exit_code, result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what a machine without a GPU shows")
def test_without_a_gpu_it_shows_what_is_recorded_and_refuses_to_record(tmp_path):
    code, shown = run("softmax")
    assert code == 0 and shown.startswith("softmax: float32\n") and "v2_online" in shown and "recorded" in shown
    code, shown = run("--record", tmp_path / "h200")
    assert code == 1 and "figures are recorded on an NVIDIA GPU, and this machine has none" in shown


def test_an_unknown_operation_is_named():
    assert run("atention") == (1, "no operation is called 'atention'; there are " + ", ".join(ops) + "\n")


def test_recording_takes_the_operations_asked_for(tmp_path, monkeypatch):
    recorded = []
    monkeypatch.setattr(benchmark, "record", lambda folder, names, *limits, say: recorded.append((folder, names, limits)))
    assert run("softmax", "--record", tmp_path, "--budget-ms", 30, "--longest-call-ms", 60, "--seconds", 90)[0] == 0
    assert run("--record", tmp_path)[0] == 0
    assert recorded == [(tmp_path, ["softmax"], (30.0, 60.0, 90.0)), (tmp_path, list(ops), (100.0, 800.0, float("inf")))]
