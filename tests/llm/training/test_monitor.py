"""The monitor: rows, their file, what it makes of a log that is there already, MFU, the curve."""

import re
import sys
from types import SimpleNamespace

import pytest
import torch

from labkernels.errors import ArgumentError
from labkernels.llm.training import monitor as module
from labkernels.llm.training.monitor import Monitor, loss_curve, mfu, read_log


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_rows_are_written_at_once_and_pandas_reads_them(tmp_path, suffix):
    path = tmp_path / f"log{suffix}"
    with Monitor(log=path, interactive=False) as monitor:
        for step in range(3):
            monitor.step(step, 100, loss=3.0 - step, lr=0.1)
        assert len(read_log(path)) == 3  # before it is closed
        monitor.note(3, validation_loss=1.5, bits_per_byte=0.7)
    table = read_log(path)
    assert table["loss"].tolist()[:3] == [3.0, 2.0, 1.0] and table["validation_loss"].iloc[3] == 1.5
    assert (table["tokens_per_s"][:3] > 0).all() and (table["memory_gb"][:3] > 0).all()


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_log_is_continued_without_the_steps_that_come_again(tmp_path, suffix):
    path = tmp_path / f"log{suffix}"
    with Monitor(log=path, interactive=False) as monitor:
        for step in range(5):
            monitor.step(step, 1, loss=float(step))
    with open(path, "a") as file:
        file.write('{"step": 5, "lo' if suffix == ".jsonl" else "5,1")  # killed while it wrote
    with Monitor(log=path, interactive=False, first_step=3) as monitor:
        monitor.step(3, 1, loss=30.0)
    assert read_log(path)["loss"].tolist() == [0.0, 1.0, 2.0, 30.0]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_the_evaluation_before_a_checkpoint_stays_in_a_log_that_is_continued(tmp_path, suffix):
    path = tmp_path / f"log{suffix}"
    with Monitor(log=path, interactive=False) as monitor:
        for step in range(4):  # evaluated after every second step; the checkpoint is that after two
            monitor.step(step, 1, loss=float(step))
            if step % 2:
                monitor.note(step + 1, validation_loss=10.0 + step)
        monitor.note(2, event="step 2 skipped")
    with Monitor(log=path, interactive=False, first_step=2) as monitor:
        monitor.step(2, 1, loss=20.0)
    table = read_log(path)
    assert table["step"].tolist() == [0, 1, 2, 2] and table["validation_loss"].dropna().tolist() == [11.0]
    assert table["loss"].dropna().tolist() == [0.0, 1.0, 20.0]


def test_a_file_that_is_no_log_is_left_alone(tmp_path):
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ArgumentError, match="is no log of a training"):
        Monitor(log=tmp_path / "notes.csv", interactive=False)
    assert (tmp_path / "notes.csv").read_text() == "a,b\n1,2\n"
    with pytest.raises(ArgumentError, match="must end in .jsonl or .csv"):
        Monitor(log=tmp_path / "log.txt", interactive=False)


def test_tokens_a_second_are_those_of_the_last_steps(monkeypatch):
    clock = iter([0.0, *[float(i) for i in range(1, 40)]])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    monitor = Monitor(interactive=False)
    assert [monitor.step(step, 50)["tokens_per_s"] for step in range(30)] == [50.0] * 30


def test_mfu_is_the_share_of_the_peak():
    assert mfu(100_000, 4.9e9, 989.0) == pytest.approx(0.495, abs=0.001)
    assert mfu(100_000, 4.9e9, None) is None and module.peak_tflops(torch.device("cpu")) is None
    assert module.PEAK_TFLOPS["H200"] == 989.0


def test_the_curve_names_both_ends():
    rows = [{"step": i, "loss": 9.0 - i} for i in range(5)] + [{"step": 5, "validation_loss": 4.5}, {"step": 5, "event": "skipped"}]
    picture = loss_curve(rows)
    assert "training 9.00 to 5.00" in picture.alt and "validation 4.50" in picture.alt


def test_tensorboard_that_is_missing_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ArgumentError, match="pip install tensorboard"):
        Monitor(tensorboard=tmp_path, interactive=False)


def test_tensorboard_gets_the_numbers_of_every_row(monkeypatch, tmp_path):
    class Writer:
        def __init__(self, folder):
            self.folder, self.seen, self.closed = folder, [], False
            made.append(self)

        def add_scalar(self, name, value, step):
            assert not self.closed
            self.seen.append((name, value, step))

        def close(self):
            self.closed = True

    made: list[Writer] = []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    with Monitor(tensorboard=tmp_path, interactive=False) as monitor:
        monitor.step(4, 100, loss=2.5)
        monitor.note(4, validation_loss=1.5, event="a word is no curve")
    (writer,) = made
    assert writer.folder == str(tmp_path) and writer.closed
    assert ("loss", 2.5, 4) in writer.seen and ("validation_loss", 1.5, 4) in writer.seen
    assert not {"event", "step"} & {name for name, _, _ in writer.seen}


def test_where_no_bar_is_seen_a_line_comes_from_time_to_time(capsys):
    with Monitor(interactive=False, total=40, minutes=5) as monitor:
        monitor.step(0, 100, loss=3.0, seconds=60.0)
        assert capsys.readouterr().out == ""
        monitor._next_line = 0.0
        monitor.step(1, 100, loss=2.5, seconds=90.0)
    assert re.fullmatch(r"step 2 of 40, 1.5 of 5 min, loss 2.500, [\d,]+ tokens/s\n", capsys.readouterr().out)
    with Monitor(interactive=False, quiet=True) as monitor:
        monitor._next_line = 0.0
        monitor.step(0, 100, loss=3.0)
    assert capsys.readouterr().out == ""
