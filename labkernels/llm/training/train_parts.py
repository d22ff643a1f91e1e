"""What a training is made of, each part by a small method: device, data, model, loaders, optimisers, what is compiled.

Notable: `Trainer` (train.py) is these parts and a loop; several GPUs replace single parts (labkernels.llm.parallel.distributed_parts) and keep the loop.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from labkernels.errors import ArgumentError
from labkernels.llm.training import fp8_linear, optim, packed_attention, packed_swiglu
from labkernels.llm.config import ModelConfig
from labkernels.llm.data.corpora import corpus
from labkernels.llm.kernels import OPERATIONS
from labkernels.llm.data.loader import Loader
from labkernels.llm.model import Transformer
from labkernels.llm.training.muon import Muon, muon_groups
from labkernels.llm.data.shards import TokenDataset, prepare
from labkernels.llm.training.train_config import TrainConfig

# What the trainer takes on Hopper. An H200 in training is held by its power limit, not by its clock: cuBLAS and matmul's v7 both multiply at some 640
# TFLOP/s then, and a step with cuBLAS's products takes 1.5% less time than one with v7 (269.9 and 273.9 ms in turns). What saves energy saves time: products
# that do SwiGLU and RoPE themselves, the end of attention's backward pass in one kernel, early launches of AdamW, and cuDNN's forward pass of attention took a
# step from 264.9 to 257.1 ms, and from 193, 194 and 182 J in three turns to 180 to 182.
# Beside the model's operations there are here
#   "activation"           "labkernels": packed_swiglu.py; "fused": that and RoPE by products.cu; "kept": and the hidden layer stays, 6 GB more for 645M
#   "attention forward"    "cudnn": whole batches of 16 bits by cuDNN
OURS = dict.fromkeys(OPERATIONS, "labkernels")
CUBLAS = OURS | {"linear": "torch", "ffn": "torch", "activation": "labkernels"}
FUSED = CUBLAS | {"activation": "fused"}
FASTEST = FUSED | {"attention forward": "cudnn"}
EXTRAS = {"activation": ("torch", "labkernels", "fused", "kept"), "attention forward": ("labkernels", "cudnn")}


class Parts:
    """The parts of the training that `config` describes. Those that are made later read the earlier ones: device, data, model, seq_len."""

    config: TrainConfig
    rank: int
    world_size: int
    device: torch.device
    data: TokenDataset
    model: Transformer
    seq_len: int

    @property
    def data_rank(self) -> int:
        """Whose share of the data this process takes; GPUs that share a model's matrices take the same."""
        return self.rank

    @property
    def gpus(self) -> int:
        return self.world_size

    def build_device(self) -> torch.device:
        name = self.config.device
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)

    def build_data(self) -> TokenDataset:
        vocab_size = self.config.vocab_size or ModelConfig.preset(self.config.preset).vocab_size
        return prepare(corpus(self.config.corpus, max_bytes=self.config.max_bytes), vocab_size, progress=self.rank == 0)

    def build_model(self) -> Transformer:
        changes = {"vocab_size": padded_vocabulary(self.data.vocab_size)} | self.config.model
        with torch.device("meta"):
            model = Transformer(ModelConfig.preset(self.config.preset, **changes), dtype=self.config.dtype)
        self.make_real(model)
        return model

    def make_real(self, model: Transformer) -> None:
        """Weights for a model that has none yet; several GPUs that share it make them later, part by part."""
        model.make_real(self.device)

    def prepare_model(self) -> None:
        """What each operation runs on, what is computed again, which products are in fp8."""
        if self.data.vocab_size > self.model.config.vocab_size:
            raise ArgumentError(f"Trainer: the data has {self.data.vocab_size} words, the model {self.model.config.vocab_size}")
        if self.seq_len > self.model.config.max_seq_len:
            raise ArgumentError(f"Trainer: seq_len is {self.seq_len}; the model takes at most {self.model.config.max_seq_len}, its max_seq_len")
        for name in ("train", "validation"):
            if (there := self.data[name]).tokens <= self.seq_len:
                raise ArgumentError(
                    f"Trainer: {'training' if name == 'train' else name} has {there.tokens} tokens, in documents: {there.documents}, "
                    f"not the {self.seq_len + 1} tokens of one sample; take a smaller seq_len or more text"
                )
        self.build_loader("validation").one_batch_at_least()  # else it would be missed at the end
        kernels, self.extras = self.config.kernels, {}
        if kernels == "auto":
            hopper = self.device.type == "cuda" and torch.cuda.get_device_capability(self.device)[0] >= 9
            kernels = FASTEST if hopper else "torch"
        if isinstance(kernels, dict):
            kernels = self.take_extras(dict(kernels))
        self.model.kernels = kernels
        self.model.checkpointing = self.config.checkpointing
        if self.config.fp8 != "none":
            fp8_linear.convert(self.model, self.config.fp8, self.device)

    def take_extras(self, kernels: dict[str, str]) -> dict[str, str]:
        """What is no operation of the model: its layers are told, and the others are left."""
        found = {name: kernels.pop(name, choices[0]) for name, choices in EXTRAS.items()}
        for name, choice in found.items():
            if choice not in EXTRAS[name]:
                raise ArgumentError(f"TrainConfig: kernels[{name!r}] is {choice!r}; it must be one of {', '.join(map(repr, EXTRAS[name]))}")
        self.extras = found if self.config.fp8 == "none" else {}  # which layers of fp8 do not take
        activation, cudnn = found["activation"], found["attention forward"] == "cudnn"
        fused = activation in ("fused", "kept")
        if activation != "torch":
            packed_swiglu.convert(self.model, fused, activation == "kept")
        if fused or cudnn:
            packed_attention.convert(self.model, fused, cudnn)
        return kernels

    def build_loader(self, split: str) -> Loader:
        c = self.config
        where = {"device": self.device, "boundaries": c.boundaries, "rank": self.data_rank, "world_size": self.world_size}
        if split == "train":
            return Loader(self.data[split], c.batch_size, self.seq_len, seed=c.seed, **where)
        whole = (self.data[split].tokens - 1) // self.seq_len // self.world_size
        # always the same samples, out of the whole split: the first documents may be unlike the rest
        return Loader(self.data[split], max(1, min(c.batch_size, whole)), self.seq_len, prefetch=0, **where)

    def build_optimizers(self) -> list[torch.optim.Optimizer]:
        c = self.config
        groups = optim.parameter_groups(self.model, c.weight_decay)
        if c.optimizer == "adamw-torch":
            return [torch.optim.AdamW(groups, lr=c.lr, betas=c.betas)]
        if c.optimizer == "adamw":
            return [self.build_adamw(groups)]
        return [Muon(muon_groups(self.model), c.lr, weight_decay=c.weight_decay), self.build_adamw_beside_muon()]

    def build_adamw(self, groups: list[dict]) -> optim.AdamW:
        c = self.config
        moments = torch.float32 if c.moments == "float32" else torch.bfloat16
        return optim.AdamW(groups, lr=c.lr, betas=c.betas, master=c.master, moment_dtype=moments, seed=c.seed)

    def build_adamw_beside_muon(self) -> optim.AdamW:
        """Of what Muon does not take: embedding, head and norms."""
        matrices = {id(p) for group in muon_groups(self.model) for p in group["params"]}
        rest = optim.parameter_groups(self.model, self.config.weight_decay)
        for group in rest:
            group["params"] = [p for p in group["params"] if id(p) not in matrices]
        return self.build_adamw(rest)

    def compiled(self) -> Callable[..., torch.Tensor]:
        """What maps inputs and targets to the loss. A block's graph serves all blocks, so "blocks" compiles for seconds where "whole" takes a minute."""
        if self.config.compile == "blocks" or self.config.compile == "auto" and self.device.type == "cuda":
            for block in self.model.blocks:
                block.compile()
        return torch.compile(self.model) if self.config.compile == "whole" else self.model


def padded_vocabulary(vocab_size: int, multiple: int = 64) -> int:
    """Rows of the embedding: full tiles for the matmul of the head. The rows beyond the tokenizer's words are never seen and learn to be unlikely."""
    return -(-vocab_size // multiple) * multiple
