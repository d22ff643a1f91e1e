"""The same training on several GPUs: `torchrun --nproc-per-node 4 -m labkernels train ...`.

Notable:
- the loop is `Trainer`'s; this replaces its parts. The data of a step is the same whatever the number of GPUs, so the loss curve is, too
- parallel="ddp": every GPU has the model, and gradients are averaged in buckets while the backward pass goes on (DistributedDataParallel)
- parallel="fsdp": every GPU has a share of each weight, its gradient and optimiser states; a block is put together before it is needed
  (fully_shard), and made that way: no GPU ever has all of the model. Optimisers see plain tensors, this rank's shares, and so run the same kernels
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
from torch.distributed.fsdp import fully_shard

from labkernels.errors import ArgumentError, LabKernelsError
from labkernels.llm.training import optim
from labkernels.llm.training.evaluate import Evaluation, boundaries
from labkernels.llm.data.loader import Batch
from labkernels.llm.model import Block, Transformer
from labkernels.llm.parallel.rank_watch import RankWatch, leave
from labkernels.llm.parallel.ranks import is_communication
from labkernels.llm.parallel.shared_muon import SharedMuon
from labkernels.llm.parallel.shared_state import Place, send_state, whole_optimizer_state
from labkernels.llm.data.shards import TokenDataset
from labkernels.llm.survival.signals import StopSignals
from labkernels.llm.parallel.tensor_parallel import average_replicated, begin_split, cut_of, split_block
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


class DistributedTrainer(Trainer):
    """A rank's `Trainer`. torch.distributed has been started; on GPUs with a backend for the CPU, too ("cpu:gloo,cuda:nccl")."""

    def __init__(self, config: TrainConfig, data: TokenDataset | None = None, model: Transformer | None = None):
        ranks, sharing = dist.get_world_size(), config.tensor_parallel
        if ranks % sharing:
            raise ArgumentError(f"TrainConfig: tensor_parallel is {sharing}; it must divide the number of GPUs, {ranks}")
        processes = [None] * ranks
        dist.all_gather_object(processes, (os.uname().nodename, os.getpid()))
        self.watch = RankWatch(processes, lambda: self._what_was_lost(self.watch.gone()))
        super().__init__(config, data, model, rank=dist.get_rank(), world_size=ranks // sharing)

    # ---- the parts ----

    @property
    def data_rank(self) -> int:
        return self.rank // self.config.tensor_parallel

    @property
    def gpus(self) -> int:
        return dist.get_world_size()

    def build_device(self) -> torch.device:
        device = super().build_device()
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", self.rank % torch.cuda.device_count())))
            torch.cuda.set_device(device)
        shape = (self.world_size, self.config.tensor_parallel)
        self.mesh = dist.device_mesh.init_device_mesh(device.type, shape, mesh_dim_names=("data", "tensor"))
        self.data_group, self.tensor_group = (self.mesh[name].get_group() for name in ("data", "tensor"))
        return device

    def make_real(self, model: Transformer) -> None:
        """Where each GPU has all of it, as one process does; else by `prepare_model`."""
        if self.config.parallel == "ddp" and self.config.tensor_parallel == 1:
            super().make_real(model)

    def prepare_model(self) -> None:
        super().prepare_model()
        sharing, rows = self.config.tensor_parallel > 1, {}

        def put_away(name: str, block: Block) -> None:
            if sharing:
                split_block(block, self.model.config, self.tensor_group)
            rows.update({f"{name}.{inside}": p.shape[0] for inside, p in block.named_parameters()})
            if self.config.parallel == "fsdp":
                fully_shard(block, mesh=self.mesh["data"])

        if sharing:
            begin_split(self.model, self.tensor_group)
        self.model.make_real(self.device, put_away)
        rows = {name: p.shape[0] for name, p in self.model.named_parameters()} | rows  # those outside of blocks are whole
        if self.config.parallel == "fsdp":
            fully_shard(self.model, mesh=self.mesh["data"])
        self.shared = dict(self.model.named_parameters())  # as the module has them between steps
        self.weights = {name: _own(p) for name, p in self.shared.items()}  # this rank's share, as plain tensors on the same memory
        self.places = {name: self._place(name, rows[name]) for name in self.weights}

    def _place(self, name: str, rows: int) -> Place:
        where = cut_of(name, self.model.config) if self.config.tensor_parallel > 1 else None
        sharded = self.config.parallel == "fsdp"
        return Place(where, self.tensor_group if where else None, self.data_group if sharded else None, rows)

    def build_optimizers(self) -> list[torch.optim.Optimizer]:
        c, whole = self.config, self.model
        self.model = _Weights(self.model, self.weights)
        try:
            if c.optimizer != "muon" or all(place == Place(rows=place.rows) for place in self.places.values()):
                return super().build_optimizers()
            return [SharedMuon(whole.config, self.weights, self.places, c.lr, c.weight_decay), self.build_adamw_beside_muon()]
        finally:
            self.model = whole

    def build_adamw(self, groups: list[dict]) -> optim.AdamW:
        adamw = super().build_adamw(groups)
        adamw.shards = {id(p): self.places[name].number for name, p in self.weights.items()}
        return adamw

    def compiled(self):
        c = self.config
        if c.parallel == "fsdp":
            if c.compile == "blocks" or c.compile == "auto" and self.device.type == "cuda":
                for block in self.model.blocks:
                    block.forward = torch.compile(block.forward)  # what puts its weights together stays outside
            elif c.compile == "whole":
                raise ArgumentError("TrainConfig: compile 'whole' does not go with parallel 'fsdp'; take 'blocks'")
            return self.model
        forward = super().compiled()
        if self.world_size == 1:
            return forward
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        parallel = nn.parallel.DistributedDataParallel
        aligned = all(p.numel() * p.element_size() % 16 == 0 for p in self.model.parameters())  # so gradients are, one behind the other
        parallel._set_params_and_buffers_to_ignore_for_model(self.model, ["angles"])  # RoPE's: the same everywhere, not to be sent in every step
        wrapped = parallel(self.model, device_ids=device_ids, gradient_as_bucket_view=aligned, process_group=self.data_group)
        return torch.compile(wrapped) if c.compile == "whole" else wrapped

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


class _Weights:
    """What optimisers are made of, in place of the model: this rank's share of each weight."""

    def __init__(self, model: Transformer, weights: dict[str, nn.Parameter]):
        self.config, self._weights = model.config, weights
        self.blocks = self

    def parameters(self):
        return self._weights.values()

    def named_parameters(self):
        return ((name, p) for name, p in self._weights.items() if name.startswith("blocks."))  # of muon_groups: the blocks'


def any_rank_has(found) -> bool:
    """Has rank 0 something? All ranks ask at the same time."""
    flag = torch.tensor([float(found is not None)])
    dist.broadcast(flag, src=0)
    return bool(flag.item())


def _local(x):
    """This rank's share of a gradient that FSDP has spread, where our kernels can read it."""
    local = x.to_local() if x is not None else None
    return local.clone() if local is not None and local.data_ptr() % 16 else local


def _own(p: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(p.detach().to_local()) if hasattr(p, "to_local") else p
