"""How v4 of `attention` is launched, on whole batches and on packed sequences, and on what it can run."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import torch

from labkernels.attention.launches import from_batch, launches
from labkernels.attention.varlen import longest
from labkernels.attention.visible import mask_operand, window_sides
from labkernels.cuda.variants import ceil_div, kernel, strides, vector_width
from labkernels.operation import Variant

SOURCE = Path(__file__).parent / "v4_warp_tiles.cu"
QUERIES_PER_WARP = 16
H200_PROCESSORS, H200_SHARED_MEMORY = 132, 227 * 1024  # the emulator plays an H200


def attention(q, k, v, causal=False, scale=None, *, window=None, mask=None, return_lse=False, tile=None):
    """v4 on (batch, heads, seq, head_dim). `tile` is (warps, keys): 4 or 8 warps of 16 queries, and 32, 64 or 128 keys; best_tile's if None."""
    batch, heads, seq_len, head_dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device) if return_lse else None
    lse_strides = bytes(24) if lse is None else strides(lse)
    kind, mask_values, mask_strides = mask_operand(mask, q, k.shape[2])
    tile = tile or best_tile(q, batch * heads, seq_len, k.shape[2], masked=mask is not None)
    all_strides = (strides(q), strides(k), strides(v), strides(out), lse_strides, mask_strides)
    sizes = (seq_len, k.shape[2], head_dim, heads // k.shape[1])
    _launch(tile, kind, batch, (q, k, v, out, lse, mask_values), all_strides, (None, None), sizes, causal, window, scale)
    return out if lse is None else (out, lse)


def varlen(
    q, k, v, cu_seqlens_q, cu_seqlens_k, causal=False, scale=None, *, window=None, return_lse=False, max_seqlen_q=None, tile=None
):  # fmt: skip
    """v4 on packed sequences: q (total_q, heads, head_dim), k and v (total_k, kv_heads, head_dim)."""
    total, heads, head_dim = q.shape
    batch = cu_seqlens_q.shape[0] - 1
    seq_len = longest(cu_seqlens_q) if max_seqlen_q is None else max_seqlen_q
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((heads, total), dtype=torch.float32, device=q.device) if return_lse else None
    packed = [struct.pack("<3q", 0, tensor.stride(1), tensor.stride(0)) for tensor in (q, k, v, out)]
    tile = tile or best_tile(q, batch * heads, seq_len, k.shape[0], masked=False)
    kind, _, mask_strides = mask_operand(None, q, 0)
    all_strides = (*packed, struct.pack("<3q", 0, total, 1), mask_strides)
    sizes = (seq_len, k.shape[0], head_dim, heads // k.shape[1])
    _launch(tile, kind, batch, (q, k, v, out, lse, None), all_strides, (cu_seqlens_q, cu_seqlens_k), sizes, causal, window, scale)
    return out if lse is None else (out, lse)


def _launch(tile, mask_kind, batch, tensors, all_strides, ends, sizes, causal, window, scale) -> None:
    """tensors: q, k, v, out, lse and the mask; ends: the cu_seqlens, or None, None."""
    q, k, v = tensors[:3]
    warps, keys = tile
    heads = q.shape[1]
    padded = 32 * ceil_div(q.shape[-1], 32)
    width = vector_width(16 // q.element_size(), q, k, v)
    attention = kernel(SOURCE, "attention_warp_tiles", q.dtype, padded, warps, keys, width, mask_kind)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    last = (*sizes, *window_sides(causal, window), scale)
    for first, batches in launches(batch):
        *own, own_mask, start_q, start_k = from_batch(first, tensors, ends)
        args = (*own, *all_strides[:5], own_mask, all_strides[5], start_q, start_k, *last)
        grid = (heads, batches, ceil_div(sizes[0], QUERIES_PER_WARP * warps))
        attention(grid, 32 * warps, args, tile_bytes(q.element_size(), padded, warps, keys))


def tile_bytes(element_size: int, head_dim: int, warps: int, keys: int) -> int:
    """sizeof(Shared<T, head_dim, warps, keys>) in v4_warp_tiles.cu."""
    queries = QUERIES_PER_WARP * warps
    return 4 * queries * (head_dim + 4 + 32 + 16) + keys * (2 * head_dim * element_size + 16)


def best_tile(q, batched_heads: int, seq_len: int, kv_len: int, masked: bool) -> tuple[int, int]:
    """The largest (warps, keys) that registers and shared memory hold, that is not mostly empty and leaves enough blocks for the GPU."""
    processors, shared_memory = H200_PROCESSORS, H200_SHARED_MEMORY
    if q.is_cuda:
        gpu = torch.cuda.get_device_properties(q.device)
        processors, shared_memory = gpu.multi_processor_count, gpu.shared_memory_per_block_optin
    padded = 32 * ceil_div(q.shape[-1], 32)
    most_keys = 128 // (2 if masked else 1) // (2 if padded > 128 else 1)  # or registers spill
    enough_blocks = 3 * batched_heads * ceil_div(seq_len, 128) >= 2 * processors
    for warps in (8, 4):
        for keys in (128, 64, 32):
            wasteful = keys > most_keys or keys > 32 and kv_len <= keys // 2
            if warps == 8 and (seq_len <= 64 or not enough_blocks or keys < 64):
                continue
            if not wasteful and tile_bytes(q.element_size(), padded, warps, keys) <= shared_memory:
                return warps, keys
    return 4, 32


def accepts(q, k, v, causal=False, scale=None, **options) -> str | None:
    if q.shape[-1] > 256:
        return "takes a head_dim of at most 256"
    strided = [name for name, tensor in (("q", q), ("k", k), ("v", v)) if tensor.stride(-1) != 1 and tensor.shape[-1] > 1]
    if strided:
        return f"takes rows whose elements are neighbours in memory, {strided[0]}'s are not"
    if q.is_cuda:
        if torch.cuda.get_device_capability(q.device) < (8, 0):
            return "needs cp.async: a GPU of compute capability 8.0 or more"
        smallest = tile_bytes(q.element_size(), 32 * ceil_div(q.shape[-1], 32), 4, 32)
        if smallest > torch.cuda.get_device_properties(q.device).shared_memory_per_block_optin:
            return f"needs {smallest} bytes of shared memory a block at this head_dim"
    return None


def _accepts_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, causal=False, scale=None, **options) -> str | None:
    return accepts(q, k, v)


_IDEA = "each warp its own 16 queries, K and V by cp.async while the warps compute; windows, masks, packed sequences"
VARIANT = Variant("v4_warp_tiles", attention, _IDEA, SOURCE, accepts)
VARLEN = Variant("v4_warp_tiles", varlen, _IDEA, SOURCE, _accepts_varlen)
