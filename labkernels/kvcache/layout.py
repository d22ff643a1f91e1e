"""How keys and values lie in memory: the one description that kernels, allocator and tests follow.

    contiguous   k, v (batch, kv_heads, max_seq, head_dim)          sequence b's token p lies at [b, :, p]
    paged        k, v (num_pages, kv_heads, page_size, head_dim)    ... at [block_table[b, p // page_size], :, p % page_size]

    block_table  (batch, max_pages) int32: the pages of each sequence in order; what lies beyond its length is never looked at
    lengths      (batch,) int32: how many tokens of each sequence the cache holds
    slots        (tokens,) int64: where a new token goes, page * page_size + offset; -1: nowhere, the token is skipped

A contiguous cache is a paged one whose pages hold max_seq tokens and of which sequence b has page b: its slots are b * max_seq + p, and every
kernel here takes both. Within a page each head's tokens are neighbours, so that one head's keys are read in long runs.

A cache of int8 or fp8 (float8_e4m3fn) has, beside k and v, k_scale and v_scale: float32, one for each token and head, of the cache's shape without
head_dim. value = scale * stored; scale = max|x| / 127 (int8) or / 448 (fp8) over the token's head, and 0 where all are 0.
"""

from __future__ import annotations

import torch

FULL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # the dtypes that need scales, and what their largest element becomes
SKIPPED = -1  # a slot for a token that is not to be stored


def quantise(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """x (..., head_dim) as stored in a cache of `dtype`, int8 or float8_e4m3fn, and its scales (...), float32."""
    largest = x.float().abs().amax(dim=-1)
    inverse = torch.where(largest > 0, LARGEST[dtype] / largest, 0.0)
    scaled = x.float() * inverse[..., None]
    stored = scaled.round().clamp(-127, 127).to(dtype) if dtype == torch.int8 else scaled.clamp(-448, 448).to(dtype)
    return stored, largest / LARGEST[dtype]


def dequantise(stored: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The values that `stored` stands for, in `dtype`. Without a scale they stand for themselves."""
    return stored.to(dtype) if scale is None else stored.to(dtype) * scale.to(dtype)[..., None]


def gather(cache: torch.Tensor, block_table: torch.Tensor | None, tokens: int | None = None) -> torch.Tensor:
    """The first `tokens` tokens of each sequence of k, v (batch, kv_heads, tokens, head_dim) or of scales (batch, kv_heads, tokens), in order.

    Entries of the block table outside the cache are read as page 0.
    """
    if block_table is None:
        return cache if tokens is None else cache[:, :, :tokens]
    pages = block_table.long()
    pages = torch.where((pages >= 0) & (pages < cache.shape[0]), pages, 0)
    found = cache[pages].transpose(1, 2)  # (batch, kv_heads, max_pages, page_size, ...)
    return found.flatten(2, 3)[:, :, :tokens]


def slots_for(positions: torch.Tensor, block_table: torch.Tensor | None, page_size: int) -> torch.Tensor:
    """Where the tokens at `positions` (batch, tokens), int64, -1 to skip, go: slots of the same shape. `page_size` is max_seq if contiguous."""
    batch = torch.arange(positions.shape[0], device=positions.device)[:, None]
    pages = batch if block_table is None else block_table[batch, positions.clamp(min=0) // page_size].long()
    return torch.where(positions < 0, SKIPPED, pages * page_size + positions.clamp(min=0) % page_size)
