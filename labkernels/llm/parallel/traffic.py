"""What ranks send to each other in a step, and what each of them holds, in closed form; and `counted()`, which watches a step.

Notable: bytes are those that each GPU sends, and that a ring needs: all-gather and reduce-scatter of B bytes over n GPUs send (n - 1) / n B,
an all-reduce is one of each. "Bus bandwidth" is these bytes over the time: what a link must carry, whatever the number of GPUs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch._dynamo  # what a dispatch mode loads with the first operator: here, once, and not in every rank that is forked
from torch.utils._python_dispatch import TorchDispatchMode

from labkernels.errors import ArgumentError
from labkernels.llm.config import ModelConfig
from labkernels.llm.estimate import parameter_table, parameters

MODES = ("ddp", "fsdp", "tensor")
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter")
FLOAT32 = 4  # bytes


def sent_bytes(collective: str, size: float, ranks: int) -> float:
    """By each of `ranks` in a ring, for a collective whose largest tensor, the whole, has `size` bytes."""
    if collective not in COLLECTIVES:
        raise ArgumentError(f"sent_bytes: collective is {collective!r}; it must be one of {', '.join(map(repr, COLLECTIVES))}")
    return (2 if collective == "all_reduce" else 1) * (ranks - 1) / ranks * size


def messages(config: ModelConfig, mode: str, ranks: int, tokens: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, float]:
    """Bytes of the tensors of a step's collectives, by collective. `tokens`: that each rank takes in; they are the same ones with "tensor".

    Without gradient accumulation and activation checkpointing; a few numbers for loss and norm are left out.
    """
    _expect(mode)
    table, size = parameter_table(config), dtype.itemsize
    if mode == "ddp":
        return {"all_reduce": parameters(config) * size}
    if mode == "fsdp":
        blocks = table["attention"] + table["ffn"] + table["norms"] - config.embed_dim
        rest = parameters(config) - blocks  # stays together from the forward to the backward pass
        return {"all_gather": (2 * blocks + rest) * size, "reduce_scatter": parameters(config) * size}
    stream = tokens * config.embed_dim * size
    alike = table["embedding"] + table["head"] + table["norms"]
    return {"all_reduce": 4 * config.num_layers * stream + alike * size, "all_gather": -(-tokens // ranks) * ranks * config.embed_dim * size}


def step_bytes(config: ModelConfig, mode: str, ranks: int, tokens: int, dtype: torch.dtype = torch.bfloat16) -> float:
    """That each GPU sends in a step."""
    return sum(sent_bytes(name, size, ranks) for name, size in messages(config, mode, ranks, tokens, dtype).items())


def memory_per_rank(
    config: ModelConfig, mode: str, ranks: int, dtype: torch.dtype = torch.bfloat16, moments: torch.dtype = torch.float32
) -> dict[str, float]:
    """Bytes of weights, gradients, float32 masters and AdamW's moments; "together" is what FSDP has of blocks that are whole for a while."""
    _expect(mode)
    count, table = parameters(config), parameter_table(config)
    own = float(count)
    if mode == "fsdp":
        own = count / ranks
    elif mode == "tensor":
        cut = table["attention"] + table["ffn"]
        own = count - cut + cut / ranks
    block = (table["attention"] + table["ffn"]) / config.num_layers
    whole = 3 * block + table["embedding"] + table["head"]  # one at work, one on its way, one's gradient
    return {
        "weights": own * dtype.itemsize,
        "gradients": own * dtype.itemsize,
        "masters": own * FLOAT32 if dtype != torch.float32 else 0.0,
        "moments": 2 * own * moments.itemsize,
        "together": whole * dtype.itemsize if mode == "fsdp" else 0.0,
    }


_OPERATORS = {  # of c10d and _c10d_functional, and which of their tensors is the whole
    "allreduce_": "all_reduce", "all_reduce": "all_reduce", "all_reduce_": "all_reduce",
    "_allgather_base_": "all_gather", "all_gather_into_tensor": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter", "reduce_scatter_tensor": "reduce_scatter",
}  # fmt: skip


class _Watch(TorchDispatchMode):
    def __init__(self, found: dict[str, float]):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = _OPERATORS.get(func._schema.name.partition("::")[2])
        if name is not None and "c10d" in func.namespace:
            self.found[name] += max(map(_bytes, (args, result)))
        return result


def _bytes(value) -> int:
    """Of the largest tensor in nested lists."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return max(map(_bytes, value), default=0) if isinstance(value, (list, tuple)) else 0


@contextmanager
def counted() -> Iterator[dict[str, float]]:
    """Bytes of the tensors of all collectives that this rank takes part in, by collective: what `messages` estimates. On the CPU."""
    found: dict[str, float] = defaultdict(float)
    with _Watch(found):
        yield found


def _expect(mode: str) -> None:
    if mode not in MODES:
        raise ArgumentError(f"traffic: mode is {mode!r}; it must be one of {', '.join(map(repr, MODES))}")
