"""What a rank's training is made of, each part by the method of train_parts.py that it replaces: device, weights, optimisers, what is compiled.

Notable:
- a model that GPUs share is made block by block, and each block is put away before the next: no GPU ever has all of it
- optimisers see plain tensors, this rank's shares on the memory that FSDP uses, and so run the same kernels as on one GPU
- every weight has a `Place`: which part of it this rank has, and who has the others. Norms, checkpoints and Muon read it
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from labkernels.errors import ArgumentError
from labkernels.llm.model import Block, Transformer
from labkernels.llm.parallel.shared_muon import SharedMuon
from labkernels.llm.parallel.shared_state import Place
from labkernels.llm.parallel.tensor_parallel import begin_split, cut_of, split_block
from labkernels.llm.training import optim
from labkernels.llm.training.train_parts import Parts


class DistributedParts(Parts):
    """The parts of one rank, in place of those of one process. torch.distributed has been started."""

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


class _Weights:
    """What optimisers are made of, in place of the model: this rank's share of each weight."""

    def __init__(self, model: Transformer, weights: dict[str, nn.Parameter]):
        self.config, self._weights = model.config, weights
        self.blocks = self

    def parameters(self):
        return self._weights.values()

    def named_parameters(self):
        return ((name, p) for name, p in self._weights.items() if name.startswith("blocks."))  # of muon_groups: the blocks'


def _own(p: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(p.detach().to_local()) if hasattr(p, "to_local") else p
