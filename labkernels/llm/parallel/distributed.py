"""The same training on several GPUs: `torchrun --nproc-per-node 4 -m labkernels train ...`.

Notable:
- the loop is `Trainer`'s; this replaces what needs other ranks, distributed_parts.py the parts. The data of a step is the same whatever the
  number of GPUs, so the loss curve is, too
- parallel="ddp": every GPU has the model, and gradients are averaged in buckets while the backward pass goes on (DistributedDataParallel)
- parallel="fsdp": every GPU has a share of each weight, its gradient and optimiser states; a block is put together before it is needed
- tensor_parallel=n: n GPUs share each matrix (tensor_parallel.py), within either of the above
- checkpoints are those of one process, and go on on any number of GPUs in any of these ways (shared_state.py)
- ranks agree by messages between CPUs, once a step: on the time, and on whether to stop. So nobody waits for a GPU, and a rank that was
  killed is noticed at once (or by rank_watch.py): the job ends and says which one it was, and which checkpoint is next
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os

import torch
import torch.distributed as dist
from torch import nn

from labkernels.errors import ArgumentError, LabKernelsError
from labkernels.llm.training.evaluate import Evaluation, boundaries
from labkernels.llm.data.loader import Batch
from labkernels.llm.model import Transformer
from labkernels.llm.parallel.distributed_parts import DistributedParts
from labkernels.llm.parallel.rank_watch import RankWatch, leave
from labkernels.llm.parallel.ranks import is_communication
from labkernels.llm.parallel.shared_state import send_state, whole_optimizer_state
from labkernels.llm.data.shards import TokenDataset
from labkernels.llm.survival.signals import StopSignals
from labkernels.llm.parallel.tensor_parallel import average_replicated
from labkernels.llm.training.train import Trainer
from labkernels.llm.training.train_config import TrainConfig


class RankLost(LabKernelsError):
    """Another rank has ended or does not answer; the text says which, and where to go on from."""


def train(config: TrainConfig) -> Trainer:
    """Train here, or, under torchrun, as one of its ranks. Returns the trainer."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        if config.tensor_parallel > 1:
            raise ArgumentError(f"TrainConfig: tensor_parallel is {config.tensor_parallel}, and there is one process; start several with torchrun")
        trainer = Trainer(config)
        trainer.train()
        return trainer
    started = False
    if not dist.is_initialized():
        started = True
        cuda = config.device.startswith("cuda") or config.device == "auto" and torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=datetime.timedelta(seconds=config.timeout_s))
    trainer = DistributedTrainer(config)
    trainer.train()
    if started:
        dist.destroy_process_group()
    return trainer


class DistributedTrainer(DistributedParts, Trainer):
    """A rank's `Trainer`. torch.distributed has been started; on GPUs with a backend for the CPU, too ("cpu:gloo,cuda:nccl")."""

    def __init__(self, config: TrainConfig, data: TokenDataset | None = None, model: Transformer | None = None):
        ranks, sharing = dist.get_world_size(), config.tensor_parallel
        if ranks % sharing:
            raise ArgumentError(f"TrainConfig: tensor_parallel is {sharing}; it must divide the number of GPUs, {ranks}")
        processes = [None] * ranks
        dist.all_gather_object(processes, (os.uname().nodename, os.getpid()))
        self.watch = RankWatch(processes, lambda: self._what_was_lost(self.watch.gone()))
        super().__init__(config, data, model, rank=dist.get_rank(), world_size=ranks // sharing)

    # ---- a step ----

    def train(self):
        try:
            with self.watch:
                rows = super().train()
            dist.all_reduce(torch.zeros(1))  # who is done early would be missed while rank 0 still writes
            return rows
        except Exception as error:
            if not is_communication(error):
                raise
            message = self._what_was_lost(self.watch.gone(wait_s=0.5), str(error).splitlines()[0][:150])
            if self.device.type == "cuda":
                leave(message)
            raise RankLost(message) from error

    def _what_was_lost(self, gone: list[int], sign: str = "its process is gone") -> str:
        who = f"rank {', '.join(map(str, gone))} has ended" if gone else "another rank has ended or does not answer"
        folder = f"the same command goes on from the newest whole checkpoint in {self.config.folder}" if self.config.folder else "no checkpoints were kept"
        return f"rank {self.rank} stops after step {self.step}, because {who}; {folder} ({sign})"

    def told_to_stop(self, stop: StopSignals) -> bool:
        return stop.anywhere("cpu")

    def clock(self, seconds: float) -> float:
        agreed = torch.tensor([seconds], dtype=torch.float64)
        dist.broadcast(agreed, src=0)
        return agreed.item()

    def backward(self, batches: list[Batch]) -> torch.Tensor:
        """Of the batches of all ranks; each token counts the same."""
        counted = torch.full((), float(sum(batch.tokens_counted for batch in batches)), device=self.device)
        if self.config.boundaries:
            dist.all_reduce(counted, group=self.data_group)
            counted.clamp_(min=1)
        else:
            counted *= self.world_size  # every target counts
        total = torch.zeros((), device=self.device)
        for number, batch in enumerate(batches):
            with self.synchronised(number == len(batches) - 1):
                loss = self.forward(batch.inputs, batch.targets_to_weigh(), **boundaries(batch)) * (batch.tokens_counted / counted)
                (loss * self.world_size).backward()  # what comes is averaged over the ranks
            total += loss.detach()
        dist.all_reduce(total, group=self.data_group)
        for name, p in self.shared.items():
            if self.weights[name] is not p:
                self.weights[name].grad, p.grad = _local(p.grad), None
        if self.config.tensor_parallel > 1:
            average_replicated(self.model, [(name, p.grad) for name, p in self.weights.items()], self.tensor_group)
        return total

    def synchronised(self, last: bool) -> contextlib.AbstractContextManager:
        if self.config.parallel == "fsdp":
            self.model.set_requires_gradient_sync(last)
            return contextlib.nullcontext()
        return contextlib.nullcontext() if last or self.world_size == 1 else self._data_parallel().no_sync()

    def _data_parallel(self) -> nn.parallel.DistributedDataParallel:
        return getattr(self.forward, "_orig_mod", self.forward)

    def gradient_norm(self) -> torch.Tensor:
        """Of the whole gradient; each number counts once, wherever it is."""
        squares = torch.zeros(2, device=self.device)  # of weights that all ranks of a tensor group have, of those that are cut
        for index, is_cut in enumerate((False, True)):
            grads = [p.grad for name, p in self.weights.items() if (self.places[name].cut is not None) == is_cut and p.grad is not None]
            if grads:
                squares[index] = torch.stack(torch._foreach_norm(grads, 2, dtype=torch.float32)).square().sum()
        if self.config.parallel == "fsdp":
            dist.all_reduce(squares, group=self.data_group)
        if self.config.tensor_parallel > 1:
            dist.all_reduce(squares[1], group=self.tensor_group)
        return squares.sum().sqrt()

    def step_fp8_scales(self) -> None:
        self.fp8_scales.step(dist.group.WORLD)

    # ---- what is seen ----

    def evaluate(self) -> Evaluation:
        own = super().evaluate()
        bits = own.loss * own.tokens / math.log(2)
        sums = torch.tensor([own.loss * own.tokens, own.tokens, bits / own.bits_per_byte, bits], dtype=torch.float64)
        dist.all_reduce(sums)  # ranks that share a model's matrices have the same numbers: the ratios stay
        self._put_away()
        loss, tokens, size, bits = sums.tolist()
        return Evaluation(loss / tokens, bits / size, int(tokens) // self.config.tensor_parallel)

    def sample(self, prompt: str = "", **options) -> str:
        """All ranks write the same; with FSDP and tensor parallelism they need each other for it."""
        if self.config.parallel == "fsdp":
            self.model.unshard()  # it calls model.hidden, of which FSDP knows nothing; blocks put themselves together
        text = super().sample(prompt, **options)
        self._put_away()
        return text

    def _put_away(self) -> None:
        """With FSDP: the weights that are used outside blocks stay together after a forward pass without gradients."""
        if self.config.parallel == "fsdp":
            self.model.reshard()

    # ---- how it survives ----

    def state(self):
        """Of the whole training, on rank 0; all ranks take part."""
        first = self.rank == 0
        if self.config.parallel == "ddp" and self.config.tensor_parallel == 1:
            return super().state() if first else {}
        model = {}
        for name, p in self.weights.items():
            whole = self.places[name].whole(p.detach())
            if first:
                model[name] = whole.cpu()
        by_id = {id(p): self.places[name] for name, p in self.weights.items()}
        optimizers = [whole_optimizer_state(optimizer, by_id, first) for optimizer in self.optimizers]
        return self.rest_of_state() | {"model": model, "optimizers": optimizers} if first else {}

    def save(self, background: bool = False) -> None:
        if not self.config.folder:
            return
        state = self.state()
        if self.rank == 0:
            self.store.save(self.step, state, background=background)
            if not background:
                self.store.wait()

    def export(self):
        model = self.model
        state = self.state()["model"] if self.rank == 0 else self.state()
        if self.rank == 0:
            self.model = Transformer(model.config, dtype=self.config.dtype)
            self.model.load_state_dict(state)
        try:
            return super().export()
        finally:
            self.model = model

    def resume(self) -> None:
        """From a checkpoint of any number of ranks: rank 0 reads, each keeps its part."""
        if self.rank != 0:
            self.store = None  # rank 0 writes
        found = self.store.load() if self.store else None
        if not any_rank_has(found):
            return
        state = send_state(found.state if found else None, self.device, self._take)
        told = self.config.differences(state["config"])
        with torch.no_grad():
            for name, p in self.weights.items():
                p.copy_(state["model"][name])
        self.load_rest(state)
        self.tell_continued(found.folder if found else "", told)

    def _take(self, path: tuple, whole: torch.Tensor) -> torch.Tensor:
        """This rank's part of a tensor of the state."""
        if path[0] == "model":
            return self.places[path[1]].part(whole)
        if path[0] == "optimizers" and path[2] == "state":
            weights = [p for group in self.optimizers[path[1]].param_groups for p in group["params"]]
            place = next(self.places[name] for name, p in self.weights.items() if p is weights[path[3]])
            return place.part(whole).clone() if whole.dim() else whole.cpu()
        return whole.cpu()


def any_rank_has(found) -> bool:
    """Has rank 0 something? All ranks ask at the same time."""
    flag = torch.tensor([float(found is not None)])
    dist.broadcast(flag, src=0)
    return bool(flag.item())


def _local(x):
    """This rank's share of a gradient that FSDP has spread, where our kernels can read it."""
    local = x.to_local() if x is not None else None
    return local.clone() if local is not None and local.data_ptr() % 16 else local
