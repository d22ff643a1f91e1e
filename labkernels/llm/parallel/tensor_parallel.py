"""Tensor parallelism: each GPU of a group has some heads of each layer and a part of its FFN (Megatron-LM, Shoeybi et al., arXiv:1909.08053).

Notable:
- the first product of a layer is cut by its rows (heads; gates and ups), the second by its columns, so that what is between needs no other
  GPU. Each layer ends with one sum over the group, and begins with one in the backward pass
- stacked weights are cut piece by piece: a rank has its queries, its keys, its values; its gates, its ups
- the head is not cut: each rank takes its share of the *tokens* through it, so that the fused loss stays what it is
- embedding, head and norms are on all ranks. Their gradients are averaged, which also keeps them the same to the last bit
- layers keep their class below another (`_Split`), so that every kernel, fp8 and checkpointing goes with it

`cut` and `join` say what a rank has of a weight: checkpoints hold whole weights.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from labkernels.errors import ArgumentError
from labkernels.llm import kernels as run
from labkernels.llm.config import ModelConfig
from labkernels.llm.data.loader import IGNORED
from labkernels.llm.model import Block, RMSNorm, Transformer


@dataclass(frozen=True)
class Cut:
    """Which axis of a weight is shared out, and what is stacked along it: each piece is shared out on its own."""

    axis: int
    pieces: tuple[int, ...]


def cut_of(name: str, config: ModelConfig) -> Cut | None:
    """How the weight of this name is shared out; None: each rank has all of it."""
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    cuts = {
        "attention.qkv_proj.weight": Cut(0, (heads, kv_heads, kv_heads)),
        "attention.out_proj.weight": Cut(1, (heads,)),
        "ffn.gate_up_proj.weight": Cut(0, (config.ffn_dim, config.ffn_dim)),
        "ffn.up_proj.weight": Cut(0, (config.ffn_dim,)),
        "ffn.down_proj.weight": Cut(1, (config.ffn_dim,)),
    }
    return next((cut for end, cut in cuts.items() if name.endswith(end)), None)


def cut(whole: torch.Tensor, how: Cut, rank: int, count: int) -> torch.Tensor:
    """What rank `rank` of `count` has of a weight."""
    pieces = whole.split(list(how.pieces), how.axis)
    return torch.cat([piece.chunk(count, how.axis)[rank] for piece in pieces], how.axis)


def join(parts: Sequence[torch.Tensor], how: Cut) -> torch.Tensor:
    """The weight of which all ranks have `parts`: the inverse of `cut`."""
    sizes = [size // len(parts) for size in how.pieces]
    by_rank = [part.split(sizes, how.axis) for part in parts]
    return torch.cat([torch.cat(pieces, how.axis) for pieces in zip(*by_rank)], how.axis)


def split(model: Transformer, group: dist.ProcessGroup) -> Transformer:
    """Keep this rank's part of each layer, in place. All ranks have the same weights before. Raises ArgumentError."""
    begin_split(model, group)
    for block in model.blocks:
        split_block(block, model.config, group)
    return model


def split_block(block: Block, config: ModelConfig, group: dist.ProcessGroup) -> None:
    """Of a block, once `begin_split` was called for its model."""
    count, rank = group.size(), group.rank()
    for name, layer in block.named_modules():
        how = cut_of(f"{name}.weight", config) if isinstance(layer, nn.Linear) else None
        if how is not None:
            layer.weight = nn.Parameter(cut(layer.weight.detach(), how, rank, count).contiguous())
            layer.out_features, layer.in_features = layer.weight.shape
    for norm in (block.attention_norm, block.ffn_norm):
        norm.__class__ = RMSNorm  # of those that make fp8 for the next product: what is sent between GPUs are tensors of 16 bits
    block.attention.num_heads //= count
    block.attention.num_kv_heads //= count
    for layer in (block.attention, block.ffn):
        layer.__class__ = _below(_Split, type(layer))
        layer.group_name = group.group_name


def begin_split(model: Transformer, group: dist.ProcessGroup) -> Transformer:
    """What belongs to no block: can it be, and the loss."""
    c, count = model.config, group.size()
    for name, size in (("num_heads", c.num_heads), ("num_kv_heads", c.num_kv_heads), ("ffn_dim", c.ffn_dim)):
        if size % count:
            raise ArgumentError(f"tensor_parallel is {count}; it must divide the model's {name}, {size}")
    model.__class__ = _below(_SplitLoss, type(model))
    model.tensor_group = group
    return model


@functools.cache  # one class for all layers: torch.compile makes one graph for them
def _below(split: type, kind: type) -> type:
    return type(f"Split{kind.__name__}", (split, kind), {})


@torch.no_grad()
def average_replicated(model: Transformer, named_gradients: Sequence[tuple[str, torch.Tensor]], group: dist.ProcessGroup) -> None:
    """The gradients of weights that all ranks have, made the same, in place, in as few messages as there are dtypes."""
    whole = [(name, grad) for name, grad in named_gradients if cut_of(name, model.config) is None]
    for name, grad in whole:
        if not name.endswith((".q_norm.weight", ".k_norm.weight")):  # those norms saw this rank's heads alone: a sum
            grad.div_(group.size())
    for dtype in sorted({grad.dtype for _, grad in whole}, key=str):
        grads = [grad for _, grad in whole if grad.dtype == dtype]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat, group=group)
        torch._foreach_copy_(grads, [part.view_as(grad) for part, grad in zip(flat.split([grad.numel() for grad in grads]), grads)])


class _Split:
    """A layer of which each rank has a part: the same input for all, and the sum of what all make of it."""

    def forward(self, x, context):
        return _sum_over(super().forward(_sum_of_gradients(x, self.group_name), context), self.group_name)


class _SplitLoss:
    """Each rank takes a part of the tokens through the head; the loss is that of all."""

    def forward(self, tokens, targets=None, cu_seqlens=None, positions=None):
        if targets is None:
            return super().forward(tokens, None, cu_seqlens, positions)
        group = self.tensor_group
        x = self.hidden(tokens, cu_seqlens, positions).flatten(0, 1)  # (tokens, embed_dim)
        targets = targets.flatten()
        rows = -(-len(x) // group.size())
        first = rows * group.rank()
        own = nn.functional.pad(targets, (0, rows * group.size() - len(targets)), value=IGNORED)[first : first + rows]
        counted = (own != IGNORED).sum()
        own = torch.where(counted == 0, torch.zeros_like(own), own)  # a mean of no tokens would be NaN; its share is 0
        head = _ScaledGradient.apply(self.head_weight, group.size())  # a part of its gradient: `average_replicated` averages
        part = run.loss(self.kernels["loss"], _OwnRows.apply(x, rows, first, group.size(), group.group_name)[None], head, own[None])
        return _sum_over(part * (counted / (targets != IGNORED).sum()), group.group_name)


def _all_reduce(x: torch.Tensor, group_name: str) -> torch.Tensor:
    """The sum over the group, as operators that torch.compile knows."""
    return torch.ops._c10d_functional.wait_tensor(torch.ops._c10d_functional.all_reduce(x.contiguous(), "sum", group_name))


class _SumOver(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group_name):
        return _all_reduce(x, group_name)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class _SumOfGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group_name):
        ctx.group_name = group_name
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return _all_reduce(grad, ctx.group_name), None


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


class _OwnRows(torch.autograd.Function):
    """rows `first` to `first + rows` of x (tokens, embed_dim), zeros where it has ended; the gradient comes from all ranks."""

    @staticmethod
    def forward(ctx, x, rows, first, count, group_name):
        ctx.tokens, ctx.count, ctx.group_name = len(x), count, group_name
        own = x[first : first + rows]
        return torch.cat([own, own.new_zeros(rows - len(own), own.shape[1])])

    @staticmethod
    def backward(ctx, grad):
        gather = torch.ops._c10d_functional.all_gather_into_tensor(grad.contiguous(), ctx.count, ctx.group_name)
        return torch.ops._c10d_functional.wait_tensor(gather)[: ctx.tokens], None, None, None, None


def _sum_over(x: torch.Tensor, group_name: str) -> torch.Tensor:
    return _SumOver.apply(x, group_name)


def _sum_of_gradients(x: torch.Tensor, group_name: str) -> torch.Tensor:
    return _SumOfGradients.apply(x, group_name)
