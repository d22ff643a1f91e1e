"""Everything that a training is told, in one place: `TrainConfig`. The options of `labkernels train` are its fields."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from labkernels.errors import ArgumentError
from labkernels.llm.config import ModelConfig
from labkernels.llm.training.optim import MASTERS, SCHEDULES

CHOICES = {
    "precision": ("float32", "bf16"),
    "master": MASTERS,
    "moments": ("float32", "bf16"),
    "compile": ("auto", "none", "blocks", "whole"),
    "checkpointing": ("none", "selective", "full"),
    "optimizer": ("adamw", "adamw-torch", "muon"),
    "schedule": tuple(SCHEDULES),
    "fp8": ("none", "delayed", "tensor", "row"),
    "parallel": ("ddp", "fsdp"),
    "on_full_disk": ("warn", "raise"),
}
LEAST = {
    "seq_len": 1, "batch_size": 1, "accumulate": 1, "warmup": 0, "lr": 0.0, "weight_decay": 0.0, "clip": 0.0, "evaluate_every": 0,
    "evaluate_batches": 1, "sample_every": 0, "sample_tokens": 1, "save_every": 0, "keep": 1,
    "tensor_parallel": 1, "timeout_s": 1, "seed": 0,
}  # fmt: skip


# What a checkpoint's training and the one that continues it must share, and what may differ without a word; of all else a difference is told.
SAME = ("preset", "model", "vocab_size", "optimizer")
MAY_DIFFER = {
    "steps", "minutes", "kernels", "compile", "checkpointing", "evaluate_every", "evaluate_batches", "sample_every", "sample_tokens", "prompt", "log",
    "tensorboard", "folder", "save_every", "keep", "on_full_disk", "parallel", "tensor_parallel", "timeout_s", "device",
}  # fmt: skip


@dataclass
class TrainConfig:
    """What to train, on what, and how. Raises ArgumentError that names the field."""

    # The model
    preset: str = "10m"  # its shape: "10m", "645m", "730m", or a Llama's, such as "llama-3.2-1b"; a wrong one is answered with all
    model: dict[str, Any] = field(default_factory=dict)  # single fields of the preset's ModelConfig to change, {"num_layers": 2}
    kernels: Any = "auto"  # what computes: "torch", "labkernels" (this package), "auto" (what was fastest), or a mapping of operations to them
    # The data
    corpus: str = "stdlib"  # stdlib (Python's own), python (all that is installed), shakespeare, tinystories, fineweb-edu, or a folder or file of text
    max_bytes: int | None = None  # take no more text than about this; None: all there is
    vocab_size: int | None = None  # tokens that the tokenizer has, which is trained on the text; None: the preset's
    seq_len: int | None = None  # tokens of a sequence; None: as many as the model takes
    batch_size: int = 16  # sequences that the CPU, or each GPU, takes in at a time
    accumulate: int = 1  # such batches, one after the other, whose gradients make one step
    boundaries: bool = False  # documents packed into one sequence do not see each other
    # How long
    steps: int | None = None  # updates of the weights; None: as many as `minutes` allow
    minutes: float | None = None  # stop after so long, whatever the steps; the schedule ends by then
    # Numbers
    precision: str = "bf16"  # of weights, activations and gradients: "bf16", or "float32", which suits a CPU
    master: str = "float32"  # what remembers the small bits of bf16 weights: a "float32" copy (Muon's matrices always), "stochastic" rounding, or "none"
    moments: str = "float32"  # of AdamW's two moments: "float32" or "bf16"
    fp8: str = "none"  # products of the blocks in 8-bit floats (Hopper): one scale a "tensor", or a "row"; "delayed": of the steps before
    # Speed and memory
    compile: str = "auto"  # by torch.compile: "blocks" (one graph for all), the "whole" model, "none"; "auto": blocks on a GPU
    checkpointing: str = "none"  # what the backward pass computes again: "none", "selective" (all but products and attention), "full" (blocks)
    # The optimiser
    optimizer: str = "adamw"  # "adamw" (one fused kernel a tensor), "adamw-torch" (PyTorch's, not fused), "muon" (with adamw for what is no matrix)
    lr: float = 1e-3  # the learning rate at its highest
    min_lr: float = 0.1  # what is left of the learning rate at the end, as a share
    schedule: str = "cosine"  # after the warm-up: "cosine", "wsd" (level, then down for the last fifth), "constant"
    warmup: int = 50  # steps over which the learning rate rises
    weight_decay: float = 0.1  # of AdamW and Muon, for matrices; norms do not decay
    betas: tuple[float, float] = (0.9, 0.95)  # of AdamW: how much of the mean gradient, and of the mean square, stays from step to step
    clip: float = 1.0  # the gradient's norm at most; 0: as it is
    # What is looked at
    evaluate_every: int = 0  # steps between evaluations; 0: at the end alone
    evaluate_batches: int = 8  # batches of the validation split that an evaluation reads, always the first
    sample_every: int = 0  # steps between samples; 0: at the end alone
    sample_tokens: int = 64  # the length of a sample
    prompt: str = "def"  # how samples begin
    log: str | None = None  # a .jsonl or .csv file with a row a step; None: train.jsonl in `folder`, if that is given
    tensorboard: str | None = None  # a folder for TensorBoard
    # How it survives
    folder: str | None = None  # for checkpoints, the log, and at the end the model; what is there is continued. None: nothing is kept
    save_every: int = 500  # steps between checkpoints; 0: at the end alone
    keep: int = 3  # how many of the newest checkpoints stay
    on_full_disk: str = "warn"  # when a checkpoint cannot be written: "warn" and go on with the older ones, or "raise" and end
    # Several GPUs, under torchrun
    parallel: str = "ddp"  # each GPU has the whole model ("ddp"), or a share of each weight that is put together when needed ("fsdp")
    tensor_parallel: int = 1  # GPUs that share each matrix, its heads and FFN columns, and take the same data; divides the number of GPUs
    timeout_s: float = 600.0  # how long a GPU waits for the others before the job ends
    # The machine
    device: str = "auto"  # "cuda" where there is a GPU, else "cpu"
    seed: int = 0  # of weights, data and samples
    deterministic: bool = False  # the same bits in each run, slower on a GPU

    def __post_init__(self):
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ArgumentError(f"TrainConfig: {name} is {getattr(self, name)!r}; it must be one of {', '.join(map(repr, choices))}")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least):
                raise ArgumentError(f"TrainConfig: {name} is {value!r}; it must be a number of at least {least}")
        for each in fields(self):
            value = getattr(self, each.name)
            if each.type in ("int", "int | None") and value is not None and not isinstance(value, int):
                raise ArgumentError(f"TrainConfig: {each.name} is {value!r}; it must be a whole number")
        ModelConfig.preset(self.preset, **self.model)  # refuses here what else would be refused when the data are there
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ArgumentError(f"TrainConfig: device is {self.device!r}; it must be auto, cpu, cuda or cuda:NUMBER")
        for name in ("steps", "minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ArgumentError(f"TrainConfig: {name} is {value!r}; it must be more than 0")
        if self.steps is None and self.minutes is None:
            raise ArgumentError("TrainConfig: neither steps nor minutes is given; one of them says when the training ends")
        if self.fp8 != "none" and self.precision != "bf16":
            raise ArgumentError("TrainConfig: fp8 goes with precision 'bf16': what is between its products is bfloat16")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ArgumentError(f"TrainConfig: betas is {self.betas!r}; it must be two numbers of at least 0 and less than 1")
        if self.seed >= 1 << 63:
            raise ArgumentError(f"TrainConfig: seed is {self.seed}; it must be less than 2**63")
        if not 0 <= self.min_lr <= 1:
            raise ArgumentError(f"TrainConfig: min_lr is {self.min_lr!r}; it must be a share of lr, 0 to 1")

    def differences(self, saved: Mapping[str, Any]) -> str:
        """What is told where a training that was saved with the fields `saved` goes on with these; "" if nothing. Raises ArgumentError for what cannot be."""
        now = asdict(self)
        found = {name: f"{name} {saved[name]!r}, now {now[name]!r}" for name in now if name in saved and _plain(saved[name]) != _plain(now[name])}
        for name in SAME:
            if name in found:
                raise ArgumentError(f"TrainConfig: the checkpoint has {found[name]}; both must be equal, or take another folder")
        return "; ".join(text for name, text in found.items() if name not in MAY_DIFFER)

    def check_folder(self) -> None:
        """Raises OSError where checkpoints could not be written: before text becomes tokens, not after."""
        if self.folder:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), self.folder)

    def check_device(self) -> None:
        """Raises ArgumentError where this machine lacks the GPU."""
        if self.device.startswith("cuda"):
            number, there = int(self.device.partition(":")[2] or 0), torch.cuda.device_count() if torch.cuda.is_available() else 0
            if number >= there:
                raise ArgumentError(f"TrainConfig: device is {self.device!r}, and torch sees {there or 'no'} NVIDIA GPUs here")

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, activations and gradients."""
        return torch.float32 if self.precision == "float32" else torch.bfloat16


def _plain(value: Any) -> Any:
    """Tuples come back from a file as lists."""
    return list(value) if isinstance(value, tuple) else value
