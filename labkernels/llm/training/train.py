"""The trainer: data, model, optimiser, and the loop, in steps that read top to bottom.

Notable:
- bf16 weights with a float32 master in the optimiser, or rounded stochastically; torch.compile of the blocks; fp8 products on Hopper;
  AdamW or Muon
- several micro-batches make one step, each token counting the same
- nothing waits for the GPU: a step's loss is read when the next step has been launched
- a loss that is NaN or jumps is seen before the weights change, and the step is skipped and told
- checkpoints hold all that a step depends on, and the same command continues them (train_state.py); SIGTERM saves and leaves
- the parts, from data to optimisers, are made by small methods (train_parts.py), which labkernels.llm.parallel.distributed_parts
  replaces for several GPUs

    trainer = Trainer(TrainConfig(preset="10m", minutes=1, batch_size=4, seq_len=256))
    trainer.train()
    trainer.rows, trainer.model, trainer.sample("def")
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from pathlib import Path
from typing import Any

import torch

from labkernels.llm import estimate
from labkernels.llm.training import optim
from labkernels.llm.survival.checkpoint import CheckpointStore
from labkernels.llm.training.evaluate import Evaluation, boundaries, evaluate, sample
from labkernels.llm.survival.guard import LossGuard
from labkernels.llm.training.fp8_scales import DelayedScales
from labkernels.llm.training.later import Later
from labkernels.llm.data.loader import Batch
from labkernels.llm.model import Transformer
from labkernels.llm.training.monitor import Monitor
from labkernels.llm.survival.out_of_memory import explained_out_of_memory
from labkernels.llm.data.shards import TokenDataset
from labkernels.llm.survival.signals import StopSignals
from labkernels.llm.training.train_config import TrainConfig
from labkernels.llm.training.train_parts import Parts
from labkernels.llm.training.train_state import Resumable

__all__ = ["TrainConfig", "Trainer"]


class Trainer(Parts, Resumable):
    """Trains the model of a TrainConfig. `data`, `model`: instead of those that the config names. `rank` of `world_size` data-parallel processes."""

    def __init__(
        self, config: TrainConfig, data: TokenDataset | None = None, model: Transformer | None = None, rank: int = 0, world_size: int = 1
    ):
        self.config, self.rank, self.world_size = config, rank, world_size
        config.check_device()
        config.check_folder()
        self.device = self.build_device()
        torch.manual_seed(config.seed)
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else PyTorch refuses cuBLAS's products on a GPU
            torch.use_deterministic_algorithms(True)
        self.data = self.build_data() if data is None else data
        self.model = self.build_model() if model is None else model
        self.seq_len = config.seq_len or self.model.config.max_seq_len
        self.prepare_model()
        self.loader = self.build_loader("train")
        self.optimizers = self.build_optimizers()
        self.guard = LossGuard()
        self.store = CheckpointStore(Path(config.folder) / "checkpoints", config.keep, on_error=config.on_full_disk) if config.folder else None
        self.step, self.tokens, self.seconds = 0, 0, 0.0  # done so far, in all runs of this training
        self.rows: list[dict[str, Any]] = []  # of steps and evaluations, in this run
        self.resume()
        self.forward = self.compiled()  # forward(inputs, targets) -> loss

    # ---- the loop ----

    def train(self) -> list[dict[str, Any]]:
        """Until the steps are done, the minutes are over, or SIGTERM or Ctrl-C. Returns the rows that the log has."""
        c, begun, launched = self.config, time.perf_counter(), None
        before = self.seconds
        self.model.train()
        with self.monitor() as monitor, StopSignals() as stop, self.explained():
            self.rows = monitor.rows
            if self.done():
                monitor.say("its steps are done, or its minutes over: more of them continue it")
            while not self.done() and not self.told_to_stop(stop):
                this = self.train_step()
                self.seconds = self.clock(before + time.perf_counter() - begun)
                self.report(launched, monitor)
                launched = this
                if self.due(c.evaluate_every) or self.due(c.sample_every) or self.due(c.save_every):
                    self.report(launched, monitor)
                    launched = None
                    self.look(monitor, self.due(c.evaluate_every), self.due(c.sample_every))
                    if self.due(c.save_every):
                        self.save(background=True)
                    monitor.begin()
            self.report(launched, monitor)
            for event in self.guard.events(wait=True):
                monitor.note(event.step, event=str(event))
            self.seconds = self.clock(before + time.perf_counter() - begun)
            if self.told_to_stop(stop):
                done = "saved and left" if self.store else "left"
                why = stop.received.name if stop.received else "another rank was"
                monitor.say(f"told to stop ({why}): {done} after step {self.step}")
                self.save()
            else:
                self.save()  # before what could still fail
                self.look(monitor, True, True)
            if self.config.folder and self.model.config.gated:
                monitor.say(f"next: {shlex.join(['labkernels', 'generate', str(self.export()), self.config.prompt])}")
            elif self.config.folder:
                monitor.say(f"no model is written beside the checkpoints: Hugging Face's layout has no {self.model.config.activation}")
        self.loader.close()
        return self.rows

    def told_to_stop(self, stop: StopSignals) -> bool:
        return stop.anywhere(self.device)

    def clock(self, seconds: float) -> float:
        """Several GPUs agree on the time, by which they end and plan."""
        return seconds

    def explained(self) -> contextlib.AbstractContextManager:
        """Where there is too little memory the error says what a step needs, and what would need less."""
        c = self.config
        return explained_out_of_memory(
            self.model.config,
            c.batch_size,
            self.seq_len,
            self.device,
            dtype=c.dtype,
            kernels=self.model.kernels | self.extras,
            checkpointing=c.checkpointing,
            optimizer="muon" if c.optimizer == "muon" else "adamw",
            state_dtype=torch.float32 if c.moments == "float32" else torch.bfloat16,
            master_weights=c.master == "float32",
            accumulate=c.accumulate > 1,
        )

    def train_step(self) -> dict[str, Any]:
        """One update of the weights, launched. Returns what `report` will read."""
        batches = [next(self.loader) for _ in range(self.config.accumulate)]
        lr = self.set_learning_rate()
        loss = self.backward(batches)
        norm = self.gradient_norm()
        skip = self.guard.check(self.step, loss, norm)
        factor = optim.clip_factor(norm, self.config.clip)
        factor = torch.where(skip.to(factor.device) > 0, torch.full_like(factor, torch.nan), factor)  # optimisers change nothing by NaN
        for optimizer in self.optimizers:
            if self.config.optimizer == "adamw-torch":
                self.plain_step(optimizer, factor)
            else:
                optimizer.step(factor=factor)
            optimizer.zero_grad(set_to_none=True)
        if self.fp8_scales is not None:
            self.step_fp8_scales()
        tokens = self.config.accumulate * self.config.batch_size * self.seq_len * self.world_size
        self.step, self.tokens = self.step + 1, self.tokens + tokens
        return {"step": self.step - 1, "lr": lr, "new": tokens, "tokens": self.tokens, "numbers": Later(torch.stack([loss, norm.to(loss.device)]))}

    def backward(self, batches: list[Batch]) -> torch.Tensor:
        """The gradients of the mean loss of all tokens of all batches; returns that loss."""
        counted = max(1, sum(batch.tokens_counted for batch in batches))
        total = torch.zeros((), device=self.device)
        for number, batch in enumerate(batches):
            with self.synchronised(number == len(batches) - 1):
                loss = self.forward(batch.inputs, batch.targets_to_weigh(), **boundaries(batch)) * (batch.tokens_counted / counted)
                loss.backward()
            total += loss.detach()
        return total

    def synchronised(self, last: bool) -> contextlib.AbstractContextManager:
        """Around each micro-batch; several GPUs need their gradients added at the last one alone."""
        return contextlib.nullcontext()

    def gradient_norm(self) -> torch.Tensor:
        return optim.gradient_norm(self.model.parameters())

    @property
    def fp8_scales(self) -> DelayedScales | None:
        """Those that are carried from step to step, where the products are in fp8 with such."""
        return getattr(self.model, "fp8_scales", None)

    def step_fp8_scales(self) -> None:
        self.fp8_scales.step()

    def plain_step(self, optimizer: torch.optim.Optimizer, factor: torch.Tensor) -> None:
        """An optimiser that knows nothing of `factor`."""
        if factor.isfinite():
            for p in (p for group in optimizer.param_groups for p in group["params"]):
                if p.grad is not None:
                    p.grad.mul_(factor)
            optimizer.step()

    def set_learning_rate(self) -> float:
        c, steps = self.config, self.planned_steps()
        floor = {} if c.schedule == "constant" else {"floor": c.min_lr}
        lr = c.lr * optim.SCHEDULES[c.schedule](self.step, steps, min(c.warmup, max(1, steps // 2)), **floor)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        return lr

    def planned_steps(self) -> int:
        """How many steps there will be: as told, or as fit into the time at the pace so far."""
        if self.config.minutes is None or not self.seconds:
            return self.config.steps or 1000
        fitting = int(self.step * max(1.0, 60 * self.config.minutes / self.seconds)) + 1
        return min(fitting, self.config.steps or fitting)

    def done(self) -> bool:
        c = self.config
        return (c.steps is not None and self.step >= c.steps) or (c.minutes is not None and self.seconds >= 60 * c.minutes)

    def due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0 and not self.done()

    # ---- what is seen ----

    def monitor(self) -> Monitor:
        c = self.config
        log = c.log or (str(Path(c.folder) / "train.jsonl") if c.folder else None)
        return Monitor(
            self.device,
            estimate.flops_per_token(self.model.config, self.seq_len),
            log if self.rank == 0 else None,
            c.tensorboard if self.rank == 0 else None,
            total=c.steps,
            minutes=c.minutes,
            first_step=self.step,
            gpus=self.gpus,
            quiet=self.rank > 0,
        )

    def report(self, launched: dict[str, Any] | None, monitor: Monitor) -> None:
        """The row of a step that was launched, once its numbers are there."""
        if launched is None:
            return
        loss, norm = launched["numbers"].read()
        values = {name: launched[name] for name in ("lr", "tokens")}
        monitor.step(launched["step"], launched["new"], loss=loss, grad_norm=norm, seconds=round(self.seconds, 3), **values)
        for event in self.guard.events():
            monitor.note(event.step, event=str(event))
            monitor.say(str(event))

    def look(self, monitor: Monitor, evaluation: bool, sampling: bool) -> None:
        """Evaluate, and write something."""
        if evaluation:
            found = self.evaluate()
            monitor.note(self.step, validation_loss=found.loss, bits_per_byte=found.bits_per_byte, tokens=self.tokens, seconds=round(self.seconds, 3))
            monitor.say(f"step {self.step}: validation loss {found.loss:.3f}, {found.bits_per_byte:.3f} bits per byte")
        if sampling:
            text = self.sample(self.config.prompt)
            monitor.note(self.step, event=f"sample: {text}")
            monitor.say(f"--- a sample at step {self.step}:\n{text}\n---")

    def evaluate(self) -> Evaluation:
        """On the beginning of the validation split, always the same."""
        sizes = torch.as_tensor(self.data.tokenizer.token_bytes())
        return evaluate(self.model, self.build_loader("validation").one_epoch(self.config.evaluate_batches), sizes)

    def sample(self, prompt: str = "", **options: Any) -> str:
        """`prompt` and what the model writes after it; options as of labkernels.llm.training.evaluate.sample."""
        tokenizer = self.data.tokenizer
        start = [tokenizer.eos_id] if tokenizer.eos_id is not None else []
        options = {"new_tokens": self.config.sample_tokens, "seed": self.config.seed} | options
        ids = start + tokenizer.encode(prompt)
        self.model.eval()
        new = sample(self.model, ids, stop=start, **options)
        self.model.train()
        return prompt + tokenizer.decode([i for i in new if i < tokenizer.vocab_size], skip_special_tokens=True)
