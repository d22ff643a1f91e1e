"""What is seen of a training while it runs, and what is kept of it.

Notable:
- every step is one row: a file that pandas reads (`.jsonl` or `.csv`), TensorBoard where it is asked for, a progress bar (where nobody sees
  one, a line from time to time), a loss curve in a notebook
- tokens/s of the last steps; MFU, the share of the GPU's arithmetic that the model's own FLOPs take (nothing recomputed counts)
- what the machine does beside it, GPU and CPU, is in each row, too (machine.py)
"""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, TextIO

import torch

from labkernels.errors import ArgumentError
from labkernels.llm.survival.files import write_file
from labkernels.llm.training.machine import Machine

PEAK_TFLOPS = {  # dense bfloat16, by NVIDIA's data sheets: what MFU is a share of
    "H200": 989.0, "H100": 989.0, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H20": 148.0, "B200": 2250.0, "GH200": 989.0, "A100": 312.0, "A800": 312.0, "L40S": 362.0, "L40": 181.0, "L4": 121.0,
    "A10": 125.0, "A40": 150.0, "A6000": 155.0, "4090": 165.0, "4080": 97.0, "4070 Ti": 80.0, "3090": 71.0, "T4": 65.0,
}  # fmt: skip
WINDOW = 20  # steps that tokens/s is a mean of
PLOT_EVERY_S = 2.0
LINE_EVERY_S = 30.0  # where no bar is: stdout is a file, or another program
SHOWN = ("loss", "validation_loss", "lr", "tokens_per_s", "mfu", "gpu_memory_gb")


def peak_tflops(device: torch.device) -> float | None:
    """What this GPU can do in bfloat16, in TFLOP/s; None where that is not known, as for a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((value for key, value in sorted(PEAK_TFLOPS.items(), key=lambda item: -len(item[0])) if key in name), None)


def mfu(tokens_per_s: float, flops_per_token: float, peak: float | None) -> float | None:
    """Model FLOPs utilisation (Chowdhery et al., PaLM, arXiv:2204.02311), of one GPU: `peak` in TFLOP/s."""
    return None if peak is None else tokens_per_s * flops_per_token / (peak * 1e12)


class Monitor:
    """Takes a row a step. `log` is a file; an existing one is continued, without the rows of steps that are to come again (`first_step`).

    `interactive`: a bar, and in a notebook a curve; None: where somebody watches. `quiet`: says nothing. `total` steps, or `minutes`, are told
    where they are known. Use it as a context manager, or close it.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        flops_per_token: float = 0.0,
        log: str | Path | None = None,
        tensorboard: str | Path | None = None,
        interactive: bool | None = None,
        total: int | None = None,
        first_step: int = 0,
        keep_rows: bool = True,
        gpus: int = 1,
        quiet: bool = False,
        minutes: float | None = None,
    ):
        self.device, self.flops_per_token, self.total, self.gpus = torch.device(device), flops_per_token, total, gpus
        self.peak = peak_tflops(self.device)
        self.rows: list[dict[str, Any]] | None = [] if keep_rows else None
        self._times: deque[tuple[float, int]] = deque(maxlen=WINDOW + 1)
        self._log = _Log(Path(log), first_step) if log else None
        self._tensorboard = _tensorboard(tensorboard) if tensorboard else None
        self._machine = Machine(self.device)
        self._bar = self._curve = None
        self._quiet, self._minutes = quiet, minutes
        self._next_line = time.monotonic() + LINE_EVERY_S
        if interactive is None:
            interactive = _watched() or sys.stderr.isatty()
        if interactive and not quiet:
            from tqdm.auto import tqdm

            what = "training" if minutes is None else f"training for {minutes:g} min"
            self._bar = tqdm(total=total, initial=first_step, desc=what, unit="step", smoothing=0.05)
            self._curve = _Curve() if _watched() else None
        self.begin()

    def begin(self) -> None:
        """The clock starts: what was before the next step, such as an evaluation, is not part of its time."""
        self._times.clear()
        self._times.append((time.perf_counter(), 0))

    def step(self, step: int, new_tokens: int, **values: float) -> dict[str, Any]:
        """One step is done that took in `new_tokens`; `values` such as loss and lr. Returns the row."""
        now = time.perf_counter()
        self._times.append((now, new_tokens))
        since, _ = self._times[0]
        rate = sum(count for _, count in list(self._times)[1:]) / max(now - since, 1e-9)
        row = {"step": step, **values, "tokens_per_s": rate}
        share = mfu(rate / self.gpus, self.flops_per_token, self.peak)
        if share is not None and self.flops_per_token:
            row["mfu"] = share
        row |= self._machine.read(now)
        self._write(row)
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix({name: f"{row[name]:.4g}" for name in SHOWN if isinstance(row.get(name), (int, float))})
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY_S
            self.say(self._line(row))
        return row

    def _line(self, row: dict[str, Any]) -> str:
        """How far it is, for those who see no bar."""
        parts = [f"step {row['step'] + 1}" + (f" of {self.total}" if self.total else "")]
        if self._minutes is not None and "seconds" in row:
            parts.append(f"{row['seconds'] / 60:.1f} of {self._minutes:g} min")
        parts += [f"loss {row['loss']:.3f}"] if "loss" in row else []
        return ", ".join([*parts, f"{row['tokens_per_s']:,.0f} tokens/s"])

    def note(self, step: int, **values: Any) -> dict[str, Any]:
        """A row beside those of the steps: an evaluation, a skipped step."""
        row = {"step": step, **values}
        self._write(row)
        return row

    def say(self, text: str) -> None:
        """A line for the reader, above the bar."""
        if self._bar is not None:
            self._bar.write(text)
        elif not self._quiet:
            print(text, flush=True)

    def close(self) -> None:
        for part in (self._bar, self._log, self._tensorboard, self._machine):
            if part is not None:
                part.close()
        if self._curve is not None:
            self._curve.draw(self.rows or [], force=True)
        self._bar = self._log = self._tensorboard = self._curve = None

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _write(self, row: dict[str, Any]) -> None:
        if self.rows is not None:
            self.rows.append(row)
        if self._log is not None:
            self._log.write(row)
        if self._tensorboard is not None:
            for name, value in row.items():
                if name != "step" and isinstance(value, (int, float)):
                    self._tensorboard.add_scalar(name, value, row["step"])
        if self._curve is not None:
            self._curve.draw(self.rows or [])


class _Log:
    """Rows in a file, each written at once. CSV has the columns that the first step's row and an evaluation have; others are dropped there."""

    COLUMNS = (
        "step", "loss", "validation_loss", "bits_per_byte", "lr", "grad_norm", "tokens", "seconds", "tokens_per_s", "mfu",
        "gpu_memory_gb", "gpu_utilisation", "gpu_watts", "gpu_mhz", "cpu_percent", "memory_gb", "event",
    )  # fmt: skip

    def __init__(self, path: Path, first_step: int):
        if path.suffix not in (".jsonl", ".csv"):
            raise ArgumentError(f"Monitor: log is {path}; its name must end in .jsonl or .csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = _rows_before(path, first_step) if path.exists() else []
        self._csv = path.suffix == ".csv"
        begin = io.StringIO(newline="")
        if self._csv:
            csv.DictWriter(begin, self.COLUMNS).writeheader()
        for row in kept:
            self._put(row, begin)
        write_file(path, begin.getvalue())  # a kill leaves the old rows or the new ones
        self._file = open(path, "a", newline="")  # noqa: SIM115  closed by close()

    def write(self, row: dict[str, Any]) -> None:
        self._put(row, self._file)
        self._file.flush()

    def _put(self, row: dict[str, Any], file: TextIO) -> None:
        if self._csv:
            csv.DictWriter(file, self.COLUMNS, extrasaction="ignore").writerow(row)
        else:
            file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        self._file.close()


def read_log(path: str | Path):
    """A log as a pandas DataFrame, `.jsonl` or `.csv`; a line that a killed process left unfinished is dropped."""
    import pandas

    path = Path(path)
    return pandas.read_csv(path, on_bad_lines="skip") if path.suffix == ".csv" else pandas.DataFrame(_rows_before(path, None))


def _rows_before(path: Path, first_step: int | None) -> list[dict[str, Any]]:
    with open(path, newline="") as file:
        if path.suffix == ".csv":
            rows = [dict(row) for row in csv.DictReader(file)]
        else:
            rows = []
            for line in file:
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    continue  # the end of a process that was killed
    try:
        return [row for row in rows if first_step is None or int(float(row["step"])) < first_step + _looked(row)]
    except (KeyError, TypeError, ValueError) as error:
        raise ArgumentError(f"Monitor: {path} exists and is no log of a training") from error


def _looked(row: dict[str, Any]) -> bool:
    """Is it an evaluation? One after n steps is row n, as the step that follows is, but does not come again with it."""
    return row.get("validation_loss") not in (None, "")


class _Curve:
    """The loss so far, drawn anew in the same place of a notebook every few seconds."""

    def __init__(self):
        from IPython.display import display

        self._place = display(_blank(), display_id=True)
        self._next = 0.0

    def draw(self, rows: list[dict[str, Any]], force: bool = False) -> None:
        if (time.monotonic() < self._next and not force) or not rows:
            return
        self._place.update(loss_curve(rows))
        self._next = time.monotonic() + PLOT_EVERY_S


def loss_curve(rows):
    """A picture of the loss by step, and of the validation loss where there is one. `rows`: a Monitor's, or a DataFrame of its log."""
    from labkernels.lab import style

    rows = rows if isinstance(rows, list) else rows.to_dict("records")

    @style.look()
    def draw():
        figure, axes = style.figure(height=2.6)
        ends = []
        for name, colour, label in (("loss", style.OURS, "training"), ("validation_loss", style.ORANGE, "validation")):
            points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), (int, float)) and row[name] == row[name]]
            if points:
                axes.plot(*zip(*points), color=colour, label=label, linewidth=1.0 if name == "loss" else 2.0, marker="o" if len(points) < 3 else None)
                ends.append(f"{label} {points[0][1]:.2f} to {points[-1][1]:.2f}")
        axes.set_xlabel("step")
        axes.set_ylabel("loss in nats a token")
        axes.legend()
        return style.picture(figure, alt=f"Loss by step: {'; '.join(ends)}.")

    return draw()


def _blank():
    from IPython.display import Markdown

    return Markdown("*the loss curve comes with the first steps*")


def _tensorboard(folder: str | Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ArgumentError("Monitor: tensorboard is not installed; `pip install tensorboard`, or leave it out: the log has the same rows") from error
    return SummaryWriter(str(folder))


def _watched() -> bool:
    from labkernels.lab.progress import watched

    return watched()
