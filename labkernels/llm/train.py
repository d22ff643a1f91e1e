"""The trainer: data, model, optimiser, and the loop, in steps that read top to bottom.

Notable:
- bf16 weights with a float32 master in the optimiser, or rounded stochastically; torch.compile of the blocks; fp8 products on Hopper; AdamW or Muon
- several micro-batches make one step, each token counting the same
- nothing waits for the GPU: a step's loss is read when the next step has been launched
- a loss that is NaN or jumps is seen before the weights change, and the step is skipped and told
- checkpoints hold all that a step depends on, and the same command continues them; SIGTERM saves and leaves
- each part is made by a small method (`build_...`), which labkernels.llm.distributed replaces for several GPUs

    trainer = Trainer(TrainConfig(preset="10m", minutes=1, batch_size=4, seq_len=256))
    trainer.train()
    trainer.rows, trainer.model, trainer.sample("def ")
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from labkernels.errors import ArgumentError
from labkernels.llm import estimate, fp8_linear, optim, packed_swiglu
from labkernels.llm.checkpoint import CheckpointStore
from labkernels.llm.config import ModelConfig
from labkernels.llm.corpora import corpus
from labkernels.llm.evaluate import Evaluation, boundaries, evaluate, sample
from labkernels.llm.guard import LossGuard
from labkernels.llm.kernels import OPERATIONS
from labkernels.llm.loader import Batch, Loader
from labkernels.llm.model import Transformer
from labkernels.llm.monitor import Monitor
from labkernels.llm.muon import Muon, muon_groups
from labkernels.llm.out_of_memory import explained_out_of_memory
from labkernels.llm.rng import rng_state, set_rng_state
from labkernels.llm.shards import TokenDataset, prepare
from labkernels.llm.signals import StopSignals
from labkernels.llm.train_config import TrainConfig

__all__ = ["TrainConfig", "Trainer"]

# What the trainer takes on Hopper. All of it is ours, beside torch.compile for what is between: with rotation and attention as one operator a layer of the
# 645M shape took 0.9 ms less than on PyTorch. In fp8 the products are Fp8Linear's, and the compiler's norms find the largest number on their way.
FASTEST = dict.fromkeys(OPERATIONS, "labkernels")
FASTEST_FP8 = FASTEST | {"norm": "torch", "linear": "torch", "ffn": "torch", "activation": "labkernels"}  # "activation": packed_swiglu.py


class Trainer:
    """Trains the model of a TrainConfig. `data`, `model`: instead of those that the config names. `rank` of `world_size` data-parallel processes."""

    def __init__(
        self, config: TrainConfig, data: TokenDataset | None = None, model: Transformer | None = None, rank: int = 0, world_size: int = 1
    ):
        self.config, self.rank, self.world_size = config, rank, world_size
        self.device = self.build_device()
        torch.manual_seed(config.seed)
        if config.deterministic:
            torch.use_deterministic_algorithms(True)
        self.data = self.build_data() if data is None else data
        self.model = self.build_model() if model is None else model
        self.seq_len = config.seq_len or self.model.config.max_seq_len
        self.prepare_model()
        self.loader = self.build_loader("train")
        self.optimizers = self.build_optimizers()
        self.guard = LossGuard()
        self.store = CheckpointStore(Path(config.folder) / "checkpoints", config.keep, on_error="warn") if config.folder else None
        self.step, self.tokens, self.seconds = 0, 0, 0.0  # done so far, in all runs of this training
        self.rows: list[dict[str, Any]] = []  # of steps and evaluations, in this run
        self.resume()
        self.forward = self.compiled()  # forward(inputs, targets) -> loss

    # ---- the parts ----

    def build_device(self) -> torch.device:
        name = self.config.device
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)

    def build_data(self) -> TokenDataset:
        vocab_size = self.config.vocab_size or ModelConfig.preset(self.config.preset).vocab_size
        return prepare(corpus(self.config.corpus, max_bytes=self.config.max_bytes), vocab_size, progress=self.rank == 0)

    def build_model(self) -> Transformer:
        changes = {"vocab_size": padded_vocabulary(self.data.vocab_size)} | self.config.model
        return Transformer(ModelConfig.preset(self.config.preset, **changes), device=self.device, dtype=self.config.dtype)

    def prepare_model(self) -> None:
        """What each operation runs on, what is computed again, which products are in fp8."""
        if self.data.vocab_size > self.model.config.vocab_size:
            raise ArgumentError(f"Trainer: the data has {self.data.vocab_size} words, the model {self.model.config.vocab_size}")
        kernels = self.config.kernels
        if kernels == "auto":
            hopper = self.device.type == "cuda" and torch.cuda.get_device_capability(self.device)[0] >= 9
            kernels = "torch" if not hopper else FASTEST if self.config.fp8 == "none" else FASTEST_FP8
        if isinstance(kernels, dict):
            kernels = dict(kernels)
            if kernels.pop("activation", "torch") == "labkernels":
                packed_swiglu.convert(self.model)
        self.model.kernels = kernels
        self.model.checkpointing = self.config.checkpointing
        if self.config.fp8 != "none":
            fp8_linear.convert(self.model, scales=self.config.fp8)

    def build_loader(self, split: str) -> Loader:
        c = self.config
        where = {"device": self.device, "boundaries": c.boundaries, "rank": self.rank, "world_size": self.world_size}
        if split == "train":
            return Loader(self.data[split], c.batch_size, self.seq_len, seed=c.seed, **where)
        whole = (self.data[split].tokens - 1) // self.seq_len // self.world_size
        return Loader(self.data[split], max(1, min(c.batch_size, whole)), self.seq_len, shuffle=False, prefetch=0, **where)

    def build_optimizers(self) -> list[torch.optim.Optimizer]:
        c = self.config
        adam = {"lr": c.lr, "betas": c.betas}
        if c.optimizer == "adamw-torch":
            return [torch.optim.AdamW(optim.parameter_groups(self.model, c.weight_decay), **adam)]
        adam |= {"master": c.master, "moment_dtype": torch.float32 if c.moments == "float32" else torch.bfloat16, "seed": c.seed}
        if c.optimizer == "adamw":
            return [optim.AdamW(optim.parameter_groups(self.model, c.weight_decay), **adam)]
        groups = muon_groups(self.model)
        matrices = {id(p) for group in groups for p in group["params"]}
        rest = [{**group, "params": [p for p in group["params"] if id(p) not in matrices]} for group in optim.parameter_groups(self.model, c.weight_decay)]
        return [Muon(groups, c.lr, weight_decay=c.weight_decay), optim.AdamW(rest, **adam)]

    def compiled(self) -> Callable[..., torch.Tensor]:
        """What maps inputs and targets to the loss. A block's graph serves all blocks, so "blocks" compiles for seconds where "whole" takes a minute."""
        if self.config.compile == "blocks" or self.config.compile == "auto" and self.device.type == "cuda":
            for block in self.model.blocks:
                block.compile()
        return torch.compile(self.model) if self.config.compile == "whole" else self.model

    # ---- the loop ----

    def train(self) -> list[dict[str, Any]]:
        """Until the steps are done, the minutes are over, or SIGTERM or Ctrl-C. Returns the rows that the log has."""
        c, begun, launched = self.config, time.perf_counter(), None
        before = self.seconds
        self.model.train()
        with self.monitor() as monitor, StopSignals() as stop, self.explained():
            self.rows = monitor.rows
            while not self.done() and not stop.anywhere(self.device):
                this = self.train_step()
                self.seconds = before + time.perf_counter() - begun
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
            self.seconds = before + time.perf_counter() - begun
            if stop.requested:
                monitor.say(f"told to stop ({stop.received.name}): saved and left after step {self.step}" if self.store else f"stopped after step {self.step}")
            else:
                self.look(monitor, True, c.sample_every >= 0)
            self.save()
        self.loader.close()
        return self.rows

    def explained(self) -> contextlib.AbstractContextManager:
        """Where there is too little memory the error says what a step needs, and what would need less."""
        c = self.config
        return explained_out_of_memory(
            self.model.config,
            c.batch_size,
            self.seq_len,
            self.device,
            dtype=c.dtype,
            kernels=self.model.kernels,
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
        tokens = self.config.accumulate * self.config.batch_size * self.seq_len * self.world_size
        self.step, self.tokens = self.step + 1, self.tokens + tokens
        return {"step": self.step - 1, "lr": lr, "new": tokens, "tokens": self.tokens, "numbers": _Later(torch.stack([loss, norm.to(loss.device)]))}

    def backward(self, batches: list[Batch]) -> torch.Tensor:
        """The gradients of the mean loss of all tokens of all batches; returns that loss."""
        counted = sum(batch.tokens_counted for batch in batches)
        total = torch.zeros((), device=self.device)
        for number, batch in enumerate(batches):
            with self.synchronised(number == len(batches) - 1):
                loss = self.forward(batch.inputs, batch.targets, **boundaries(batch)) * (batch.tokens_counted / counted)
                loss.backward()
            total += loss.detach()
        return total

    def synchronised(self, last: bool) -> contextlib.AbstractContextManager:
        """Around each micro-batch; several GPUs need their gradients added at the last one alone."""
        return contextlib.nullcontext()

    def gradient_norm(self) -> torch.Tensor:
        return optim.gradient_norm(self.model.parameters())

    def plain_step(self, optimizer: torch.optim.Optimizer, factor: torch.Tensor) -> None:
        """An optimiser that knows nothing of `factor`."""
        if factor.isfinite():
            for p in self.model.parameters():
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
            interactive=None if self.rank == 0 else False,
            total=c.steps,
            first_step=self.step,
            gpus=self.world_size,
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
        """`prompt` and what the model writes after it; options as of labkernels.llm.evaluate.sample."""
        tokenizer = self.data.tokenizer
        start = [tokenizer.eos_id] if tokenizer.eos_id is not None else []
        options = {"new_tokens": self.config.sample_tokens, "seed": self.config.seed} | options
        ids = start + tokenizer.encode(prompt)
        self.model.eval()
        new = sample(self.model, ids, stop=start, **options)
        self.model.train()
        return prompt + tokenizer.decode([i for i in new if i < tokenizer.vocab_size], skip_special_tokens=True)

    # ---- how it survives ----

    def state(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "data": self.loader.state_dict(),
            "rng": rng_state(),
            "guard": self.guard.state_dict(),
            "counts": {"step": self.step, "tokens": self.tokens, "seconds": self.seconds},
            "config": {name: value for name, value in dataclasses.asdict(self.config).items() if name != "betas"},
        }

    def save(self, background: bool = False) -> None:
        if self.store is not None:
            self.store.save(self.step, self.state(), background=background)
            if not background:
                self.store.wait()

    def resume(self) -> None:
        """Continue the newest whole checkpoint of the folder, if there is one."""
        found = self.store.load() if self.store else None
        if found is None:
            return
        state = found.state
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.loader.load_state_dict(state["data"])
        self.guard.load_state_dict(state["guard"])
        self.step, self.tokens, self.seconds = (state["counts"][name] for name in ("step", "tokens", "seconds"))
        set_rng_state(state["rng"])
        if self.rank == 0:
            print(f"continuing {found.folder} after step {self.step}", flush=True)


class _Later:
    """Numbers on a GPU, copied to the host behind what is launched; `read()` waits for them alone."""

    def __init__(self, numbers: torch.Tensor):
        self._ready, self._source = None, numbers
        if numbers.is_cuda:
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()
        else:
            self._numbers = numbers

    def tensor(self) -> torch.Tensor:
        """The numbers where they were made."""
        return self._source

    def read(self) -> list[float]:
        if self._ready is not None:
            self._ready.synchronize()
        return self._numbers.tolist()


def padded_vocabulary(vocab_size: int, multiple: int = 64) -> int:
    """Rows of the embedding: full tiles for the matmul of the head. The rows beyond the tokenizer's words are never seen and learn to be unlikely."""
    return -(-vocab_size // multiple) * multiple
