"""How v7 of `attention` is launched: float32 in halves on Hopper's tensor cores, and on what it can run."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import torch

from labkernels.attention.hopper import tiles_refusal
from labkernels.attention.launches import launches
from labkernels.attention.visible import mask_operand, window_sides
from labkernels.cuda.kernel import Kernel
from labkernels.cuda.tensor_map import tensor_map
from labkernels.cuda.variants import ceil_div, hopper_refusal, kernel, processors, strides, vector_width
from labkernels.operation import Variant, dtype_name

FILE = Path(__file__).with_name("v7_split.cu")
SPLIT_FILE = Path(__file__).with_name("split_tiles.cu")
TILE = 128  # queries of a block, and keys that it multiplies at a time
MAX_HEAD_DIM = 128
FEWEST_QUERIES = 64  # on a GPU: a tile of fewer is mostly empty
STAGES = {64: 2, 128: 1}  # tiles of keys in flight, by head_dim


def v7_split(q, k, v, causal=False, scale=None, *, window=None, mask=None, return_lse=False):
    return configured(STAGES[padded(q.shape[3])], True, q, k, v, causal, scale, window=window, mask=mask, return_lse=return_lse)


def padded(head_dim: int) -> int:
    """HEAD_DIM in v7_split.cu."""
    return 64 * ceil_div(head_dim, 64)


def shared_mem(stages: int, head_dim: int) -> int:
    """sizeof what AttentionLayout (hopper.cuh) lays out, twice as wide: high halves and low ones."""
    return (1 + 2 * stages) * TILE * head_dim * 4 + 16 * (1 + 2 * stages)


def configured(stages: int, in_turns: bool, q, k, v, causal=False, scale=None, *, window=None, mask=None, return_lse=False):
    """v7 with so many tiles of keys in flight, whose warpgroups take turns at the tensor cores or do not."""
    (batches, heads, seq_len, head_dim), (kv_heads, kv_len) = q.shape, k.shape[1:3]
    out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device) if return_lse else None
    halves, scales = split_tiles(q, k, v)
    maps = [tensor_map(tensor, (1, TILE, 64), 128) for tensor in halves]
    kind, mask, mask_strides = mask_operand(mask, q, kv_len)
    scale = (1 / math.sqrt(head_dim) if scale is None else scale) * math.log2(math.e)
    sizes = (batches, heads, heads // kv_heads, seq_len, kv_len, head_dim)
    args = (*maps, *scales, out, strides(out), lse, mask, mask_strides, *sizes, *window_sides(causal, window), scale)
    blocks = min(processors(q), ceil_div(seq_len, TILE) * heads * batches)
    _kernel(padded(head_dim), stages, in_turns, kind)(blocks, 384, args, shared_mem(stages, padded(head_dim)))
    return out if lse is None else (out, lse)


def split_tiles(q, k, v) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The halves of q, k and v, each (2 heads of all batches, padded rows, padded head_dim), and their scales (heads of all batches, tiles)."""
    (batches, heads, seq_len, head_dim), (kv_heads, kv_len) = q.shape, k.shape[1:3]
    halves, scales = [], []
    for tensor in (q, k, v):
        matrices, tiles = batches * tensor.shape[1], ceil_div(tensor.shape[2], TILE)
        halves.append(torch.empty((2 * matrices, tiles * TILE, padded(head_dim)), dtype=torch.float16, device=q.device))
        scales.append(torch.empty((matrices, tiles), dtype=torch.float32, device=q.device))
    sizes = (batches, heads, kv_heads, seq_len, kv_len, head_dim)
    split = kernel(SPLIT_FILE, "split_tiles", padded(head_dim), vector_width(4, q, k, v))
    for first, matrices in launches(batches * heads):
        grid = ceil_div(max(seq_len, kv_len), TILE), matrices, 3
        split(grid, 256, (q, k, v, strides(q), strides(k), strides(v), *halves, *scales, *sizes, first))
    return halves, scales


@functools.lru_cache(None)
def _kernel(head_dim: int, stages: int, in_turns: bool, mask: int) -> Kernel:
    return Kernel(FILE, f"attention_split<{head_dim}, {stages}, {str(in_turns).lower()}, {mask}>")


def accepts(q, k, v, causal=False, scale=None, **_) -> str | None:
    if q.dtype != torch.float32:
        return f"takes float32, not {dtype_name(q.dtype)}"
    if q.shape[-1] > MAX_HEAD_DIM:
        return f"takes a head_dim of at most {MAX_HEAD_DIM}"
    if scale is not None and scale <= 0:
        return "takes a scale above 0"
    if q.is_cuda and q.shape[2] < FEWEST_QUERIES:
        return f"takes {FEWEST_QUERIES} queries or more"
    strided = [name for name, tensor in (("q", q), ("k", k), ("v", v)) if tensor.stride(3) != 1 and tensor.shape[3] > 1]
    if strided:
        return f"takes rows whose elements are neighbours in memory, {strided[0]}'s are not"
    return tiles_refusal(q.shape[2], q.shape[0] * q.shape[1]) or hopper_refusal(q)


V7 = Variant("v7_split", v7_split, "float32 as two halves: three products of the tensor cores are as exact", FILE, accepts)
