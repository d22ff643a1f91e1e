"""How v4 of `attention_backward` is launched, float32 in halves on tensor cores: its tilings, and what it can run on."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import torch

from labkernels.attention.launches import launches
from labkernels.attention.visible import mask_operand, window_sides
from labkernels.attention_backward import tensor_cores
from labkernels.attention_backward.packing import as_heads, gradients_like
from labkernels.cuda.variants import ceil_div, kernel, vector_width
from labkernels.operation import Variant

FILE = Path(__file__).with_name("v4_split.cu")
MAX_HEAD_DIM = 128
FEWEST_QUERIES = 64  # of all packed sequences: with fewer, tiles are mostly empty, and v1 is soon through


class Tiling(tensor_cores.Tiling):
    """v2's, in halves: two for each number."""

    @property
    def shared_bytes(self) -> int:
        """sizeof what SplitLayout (split.cuh) lays out."""
        tiles = (2 * self.keys + 4 * self.queries) * self.head_dim * 4
        return tiles + 2 * self.keys * self.queries * 4 + 4 * self.queries * 4 + 6 * 16 + 2 * self.pairs * 4

    def tile_bytes(self, rows: int) -> int:
        """SplitTile<head_dim, rows>::BYTES."""
        return rows * self.head_dim * 4 + 16


TILINGS = {  # by name: for each head_dim the first one that fits in shared memory is taken
    "d64": Tiling(64, 4, 2, 64, 1),
    "d64_small": Tiling(64, 2, 2, 32, 2),
    "d128": Tiling(128, 4, 2, 32, 1),
    "d128_small": Tiling(128, 4, 1, 32, 1),
}


def best_tiling(q) -> Tiling | None:
    available = tensor_cores._shared_memory(q.device) - 1024  # what the kernel has besides
    return next((tiling for tiling in TILINGS.values() if tiling.head_dim >= q.shape[-1] and tiling.shared_bytes <= available), None)


def backward(grad_out, q, k, v, out, lse, causal=False, scale=None, *, window=None, mask=None, deterministic=False, packed=None):
    options = {"window": window, "mask": mask, "deterministic": deterministic, "packed": packed}
    return configured(best_tiling(q), grad_out, q, k, v, out, lse, causal, scale, **options)


def configured(
    tiling: Tiling | str, grad_out, q, k, v, out, lse, causal=False, scale=None, *, window=None, mask=None, deterministic=False, packed=None
):  # fmt: skip
    """v4 with this tiling, or the one of TILINGS with this name. Its head_dim is that of q or more."""
    tiling = TILINGS[tiling] if isinstance(tiling, str) else tiling
    cu_q, cu_k, seq_len, kv_len = packed or (None, None, q.shape[2], k.shape[2])
    batch = len(cu_q) - 1 if packed else q.shape[0]
    results = gradients_like(q, k, v)
    grad_out, q, k, v, out, dq, dk, dv = as_heads(packed, grad_out, q, k, v, out, *results)
    lse = lse if lse.stride(-1) == 1 else lse.contiguous()
    heads, head_dim, kv_heads, device = q.shape[1], q.shape[3], k.shape[1], q.device
    tiles, key_blocks = ceil_div(seq_len, tiling.queries), ceil_div(kv_len, tiling.keys)
    row_tiles = q.shape[2] // tiling.queries + batch if packed else tiles
    key_tiles = k.shape[2] // tiling.keys + batch if packed else key_blocks
    all_tiles, all_key_tiles = (heads if packed else batch * heads) * row_tiles, (kv_heads if packed else batch * kv_heads) * key_tiles
    row_lse, delta = torch.empty((2, all_tiles * tiling.queries), dtype=torch.float32, device=device)
    sums = torch.zeros(all_tiles * tiling.queries * tiling.head_dim, dtype=torch.float32, device=device)
    turns = torch.zeros(all_tiles * 2 * tiling.pairs, dtype=torch.int32, device=device) if deterministic else None
    q_halves, grad_halves = torch.empty((2, all_tiles * tiling.tile_bytes(tiling.queries)), dtype=torch.int8, device=device)
    k_halves, v_halves = torch.empty((2, all_key_tiles * tiling.tile_bytes(tiling.keys)), dtype=torch.int8, device=device)

    def steps(tensor):  # packed sequences all lie in batch 0
        return struct.pack("<3q", 0 if packed else tensor.stride(0), *tensor.stride()[1:3])

    def launch(name, template, blocks, own_heads, threads, args, shared_bytes=0):
        run = kernel(FILE, name, *template)
        for first, some in launches(batch, own_heads):
            run((blocks[0], some * own_heads, *blocks[1:]), threads, (*args, first), shared_bytes)

    of_q, of_k = (cu_q, heads, seq_len, head_dim, row_tiles), (cu_k, kv_heads, kv_len, head_dim, key_tiles)
    args = (q, grad_out, q_halves, grad_halves, steps(q), steps(grad_out), *of_q)
    launch("attention_backward_halves", (tiling.head_dim, tiling.queries), (tiles, 2), heads, 256, args)
    args = (k, v, k_halves, v_halves, steps(k), steps(v), *of_k)
    launch("attention_backward_halves", (tiling.head_dim, tiling.keys), (key_blocks, 2), kv_heads, 256, args)
    args = (grad_out, out, lse, row_lse, delta, steps(grad_out), steps(out), 0 if packed else lse.stride(0), lse.stride(-2), *of_q)
    launch("attention_backward_prepare", (q.dtype, tiling.head_dim, tiling.queries), (tiles,), heads, 256, args)

    kind, mask, mask_strides = mask_operand(mask, q, kv_len)
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    sizes = (heads, heads // kv_heads, seq_len, kv_len, head_dim, row_tiles, key_tiles, *window_sides(causal, window))
    problem = b"".join((steps(dk), steps(dv), mask_strides, struct.pack("<9if", *sizes, scale * math.log2(math.e))))
    args = (q_halves, grad_halves, k_halves, v_halves, row_lse, delta, sums, turns, dk, dv, mask, cu_q, cu_k, problem)
    template = tiling, kind, str(deterministic).lower()
    launch("attention_backward_split", template, (key_blocks,), kv_heads, tiling.threads, args, tiling.shared_bytes)
    launch("attention_backward_split_rows", (tiling,), (tiles,), heads, tiling.threads, (sums, dq, steps(dq), *of_q, scale))
    return results


def accepts(grad_out, q, k, v, out, lse, *_, **__) -> str | None:
    if q.dtype != torch.float32:
        return "takes float32"
    if q.shape[-1] > MAX_HEAD_DIM:
        return f"takes a head_dim of at most {MAX_HEAD_DIM}"
    if lse.shape[-1] < FEWEST_QUERIES:
        return f"takes {FEWEST_QUERIES} queries or more"
    for name, tensor in (("grad_out", grad_out), ("q", q), ("k", k), ("v", v), ("out", out)):
        if vector_width(8, tensor) == 1:
            return f"takes rows that lie on 32 bytes, {name}'s do not"
    if q.is_cuda and torch.cuda.get_device_capability(q.device) < (8, 0):
        return "needs a GPU of compute capability 8.0 or more"
    return None if best_tiling(q) else "needs more shared memory than this GPU has"


IDEA = "float32 as two halves: v2, each product three of the tensor cores, as exact as float32"
VARIANT = Variant("v4_split", backward, IDEA, FILE, accepts)
