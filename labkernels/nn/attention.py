"""`FlashAttention`: self-attention as a layer, with grouped key and value heads."""

from __future__ import annotations

import torch
from torch import nn

from labkernels.attention import Window
from labkernels.errors import ArgumentError
from labkernels.functional import attention, matmul


class FlashAttention(nn.Module):
    """Multi-head self-attention: one projection to queries, keys and values, `lk.functional.attention`, one projection back.

        layer = FlashAttention(embed_dim=2048, num_heads=32, num_kv_heads=8).to("cuda", torch.bfloat16)
        y = layer(x)                                            # (batch, seq_len, embed_dim) -> the same shape

    `num_kv_heads` (num_heads unless given) of keys and values are shared by groups of query heads: grouped-query attention, or multi-query
    with 1. `head_dim` is embed_dim / num_heads unless given. `bias` adds one to both projections. `causal` hides later positions.

    Parameters, by their names in state_dict():
        qkv_proj.weight ((num_heads + 2 num_kv_heads) head_dim, embed_dim)   rows of the queries, head by head, then keys, then values
        qkv_proj.bias   ((num_heads + 2 num_kv_heads) head_dim,)
        out_proj.weight (embed_dim, num_heads head_dim)
        out_proj.bias   (embed_dim,)
    With as many key heads as query heads, qkv_proj is nn.MultiheadAttention's in_proj, and out_proj its out_proj.
    Raises ArgumentError that names the argument.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = False,
        causal: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        sizes = {"embed_dim": embed_dim, "num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": 1 if head_dim is None else head_dim}
        for name, value in sizes.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"FlashAttention: {name} is {value!r}; it must be an int of at least 1")
        if num_heads % num_kv_heads:
            raise ArgumentError(f"FlashAttention: num_heads is {num_heads}, num_kv_heads is {num_kv_heads}; the first must be a multiple of the second")
        if head_dim is None and embed_dim % num_heads:
            raise ArgumentError(f"FlashAttention: embed_dim is {embed_dim}, no multiple of num_heads, {num_heads}; give head_dim")
        self.embed_dim, self.num_heads, self.num_kv_heads, self.causal = embed_dim, num_heads, num_kv_heads, causal
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        where = {"bias": bias, "device": device, "dtype": dtype}
        self.qkv_proj = nn.Linear(embed_dim, (num_heads + 2 * num_kv_heads) * self.head_dim, **where)
        self.out_proj = nn.Linear(num_heads * self.head_dim, embed_dim, **where)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, window: Window | None = None) -> torch.Tensor:
        """x (batch, seq_len, embed_dim) to the same shape. `mask` (bool: True may be seen; floating: added to the scores) is broadcastable to
        (batch, num_heads, seq_len, seq_len), `window` is (left, right): both as in `lk.functional.attention`, beside `causal`."""
        if x.dim() != 3 or x.shape[2] != self.embed_dim:
            raise ArgumentError(f"FlashAttention: x has shape {tuple(x.shape)}; it must be (batch, seq_len, embed_dim = {self.embed_dim})")
        batch, seq_len, _ = x.shape
        heads, kv_heads = self.num_heads, self.num_kv_heads
        projected = _linear(x.reshape(batch * seq_len, self.embed_dim), self.qkv_proj)
        by_head = projected.view(batch, seq_len, heads + 2 * kv_heads, self.head_dim).transpose(1, 2)
        q, k, v = by_head.split([heads, kv_heads, kv_heads], dim=1)  # views: the kernels read them where they are
        out = attention(q, k, v, causal=self.causal, mask=mask, window=window)
        joined = out.transpose(1, 2).reshape(batch * seq_len, heads * self.head_dim)
        return _linear(joined, self.out_proj).view(batch, seq_len, self.embed_dim)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, head_dim={self.head_dim}, causal={self.causal}"


def _linear(x: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    return matmul(x, layer.weight.t(), layer.bias)
