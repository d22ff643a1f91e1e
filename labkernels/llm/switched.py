"""What each operation of the model gains by running on this package's kernels: `python -m labkernels.llm.switched --record data/measured/h200`.

Notable: the forward and backward pass of twelve layers of the 645m preset, each compiled in one graph; everything on PyTorch, then one operation after the
other on ours, rotation and attention together, then all; medians, in one process. Writes transformer_switched.csv; takes about a minute of a GPU.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path

import pandas
import torch

from labkernels.errors import LabKernelsError
from labkernels.lab.environment import environment
from labkernels.lab.measured import recorded
from labkernels.llm.config import ModelConfig
from labkernels.llm.kernels import OPERATIONS
from labkernels.llm.model import Transformer

NAME = "transformer_switched"
BATCH, SEQ, LAYERS, STEPS, TURNS = 16, 2048, 12, 4, 4


def variants() -> dict[str, str | dict[str, str]]:
    """What is switched, and the `kernels` of a model for it."""
    together = {"rope": "labkernels", "attention": "labkernels"}
    return {"nothing": "torch", **{name: {name: "labkernels"} for name in OPERATIONS}, "rope and attention": together, "everything": "labkernels"}


def measure() -> Iterator[dict]:
    """A row for each variant: milliseconds of a forward and backward pass, and the peak of memory. Variants take turns, for a GPU grows slower as it
    grows warm."""
    config = ModelConfig.preset("645m", num_layers=LAYERS)
    torch.manual_seed(0)
    model = Transformer(config, device="cuda", dtype=torch.bfloat16)
    for block in model.blocks:
        block.compile(fullgraph=True)  # the blocks share their graphs, one for each variant
    tokens, targets = (torch.randint(config.vocab_size, (BATCH, SEQ), device="cuda") for _ in range(2))
    times, peaks, losses = {}, {}, {}

    def step() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        loss = model(tokens, targets)
        loss.backward()
        return loss.detach()

    with torch._dynamo.config.patch(recompile_limit=100):
        for turn in range(TURNS + 1):  # the first one compiles
            for name, kernels in variants().items():
                model.kernels = kernels
                losses[name] = step().item()
                torch.cuda.reset_peak_memory_stats()
                events = [torch.cuda.Event(enable_timing=True) for _ in range(STEPS + 1)]
                for event in events[:-1]:
                    event.record()
                    step()
                events[-1].record()
                torch.cuda.synchronize()
                if turn:
                    times.setdefault(name, []).extend(first.elapsed_time(second) for first, second in zip(events, events[1:]))
                peaks[name] = torch.cuda.max_memory_allocated() / 1e9
    size = {"layers": LAYERS, "batch": BATCH, "seq_len": SEQ, "dtype": "bfloat16"}
    for name in variants():
        yield {"switched": name, **size, "ms": statistics.median(times[name]), "peak_gb": peaks[name], "loss": losses[name], **environment()}


def record(folder: Path) -> pandas.DataFrame:
    """The measured rows, written to `folder`."""
    if not torch.cuda.is_available():
        raise LabKernelsError("switched: figures are recorded on an NVIDIA GPU, and this machine has none")
    frame = pandas.DataFrame(measure())
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / f"{NAME}.csv", index=False, float_format="%.6g")
    return frame


def table() -> pandas.DataFrame:
    """The recorded rows as the book shows them; NotRecorded where there are none."""
    frame = recorded(NAME)
    base = frame.loc[frame["switched"] == "nothing", "ms"].iloc[0]
    shown = pandas.DataFrame({"switched": frame["switched"], "ms": frame["ms"].round(2), "gained, ms": (base - frame["ms"]).round(2)})
    return shown.assign(**{"peak, GB": frame["peak_gb"].round(1)}).set_index("switched")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--record", type=Path, required=True, metavar="DIR")
    print(record(parser.parse_args().record).to_string(index=False))
