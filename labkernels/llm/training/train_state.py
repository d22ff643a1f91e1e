"""What a training leaves behind and goes on from: its checkpoints, and the model at the end in Hugging Face's layout.

Notable:
- a state has all that the next step depends on: weights, optimisers, the place in the data, random numbers, what the guard of the loss has seen,
  and the time; so a training that was stopped and continued has the losses of one that was not
- it is the same for any number of GPUs; labkernels.llm.parallel.distributed puts it together there, and hands it out
- where the config is another than the checkpoint's, that is told; what must be the same is refused (train_config.py)
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from labkernels.llm.data.loader import Loader
from labkernels.llm.data.token_dataset import TokenDataset
from labkernels.llm.model import Transformer
from labkernels.llm.survival.checkpoint import CheckpointStore
from labkernels.llm.survival.guard import LossGuard
from labkernels.llm.survival.rng import rng_state, set_rng_state
from labkernels.llm.training.fp8_scales import DelayedScales
from labkernels.llm.training.train_config import TrainConfig


class Resumable:
    """The part of a `Trainer` that saves it and brings it back. `store` is None where no checkpoints are kept."""

    config: TrainConfig
    rank: int
    data: TokenDataset
    model: Transformer
    loader: Loader
    optimizers: list[torch.optim.Optimizer]
    guard: LossGuard
    fp8_scales: DelayedScales | None
    store: CheckpointStore | None
    step: int
    tokens: int
    seconds: float

    def state(self) -> dict[str, Any]:
        """All that the next step depends on."""
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        return {"model": self.model.state_dict(), "optimizers": optimizers} | self.rest_of_state()

    def rest_of_state(self) -> dict[str, Any]:
        """What is the same on all GPUs."""
        return {
            "data": self.loader.state_dict(),
            "rng": rng_state(),
            "guard": self.guard.state_dict(),
            "fp8_scales": None if self.fp8_scales is None else self.fp8_scales.state_dict(),
            "counts": {"step": self.step, "tokens": self.tokens, "seconds": self.seconds},
            "config": dataclasses.asdict(self.config) | {"betas": list(self.config.betas)},
        }

    def save(self, background: bool = False) -> None:
        if self.store is not None:
            self.store.save(self.step, self.state(), background=background)
            if not background:
                self.store.wait()

    def export(self) -> Path:
        """The model and its tokenizer in Hugging Face's layout, for `labkernels generate`, `chat` and `serve`, and for transformers."""
        folder = Path(self.config.folder) / "model"
        if self.rank == 0:
            self.model.save_pretrained(folder)
            self.data.tokenizer.save(folder)
        return folder

    def resume(self) -> None:
        """Continue the newest whole checkpoint of the folder, if there is one."""
        found = self.store.load() if self.store else None
        if found is None:
            return
        state = found.state
        told = self.config.differences(state["config"])
        self.model.load_state_dict(state["model"])
        self.load_rest(state)
        self.tell_continued(found.folder, told)

    def tell_continued(self, folder: Path, told: str) -> None:
        if self.rank == 0:
            print(f"continuing {folder} after step {self.step}" + (f"; it was saved with {told}" if told else ""), flush=True)

    def load_rest(self, state: dict[str, Any]) -> None:
        """All but the model."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.loader.load_state_dict(state["data"])
        self.guard.load_state_dict(state["guard"])
        if self.fp8_scales is not None and state.get("fp8_scales"):  # else they begin anew
            self.fp8_scales.load_state_dict(state["fp8_scales"])
        self.step, self.tokens, self.seconds = (state["counts"][name] for name in ("step", "tokens", "seconds"))
        set_rng_state(state["rng"])
