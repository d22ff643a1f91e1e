"""How v4 of `attention_backward` is launched, float32 in halves on tensor cores: its tilings, and what it can run on."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import torch

from labkernels.attention.visible import mask_operand, window_sides
from labkernels.attention_backward import tensor_cores
from labkernels.attention_backward.host import BackwardPass
from labkernels.cuda.variants import kernel, vector_width
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
    of = BackwardPass(tiling, grad_out, q, k, v, out, lse, packed, deterministic)
    key_blocks, key_tiles, all_key_tiles = of.key_tiles(tiling.keys)
    q_halves, grad_halves = torch.empty((2, of.all_tiles * tiling.tile_bytes(tiling.queries)), dtype=torch.int8, device=of.device)
    k_halves, v_halves = torch.empty((2, all_key_tiles * tiling.tile_bytes(tiling.keys)), dtype=torch.int8, device=of.device)

    def launch(name, template, *how):
        of.launch(kernel(FILE, name, *template), *how)

    of_q, of_k = (of.cu_q, of.heads, of.seq_len, of.head_dim, of.row_tiles), (of.cu_k, of.kv_heads, of.kv_len, of.head_dim, key_tiles)
    args = (of.q, of.grad_out, q_halves, grad_halves, of.steps(of.q), of.steps(of.grad_out), *of_q)
    launch("attention_backward_halves", (tiling.head_dim, tiling.queries), (of.tiles, 2), of.heads, 256, args)
    args = (of.k, of.v, k_halves, v_halves, of.steps(of.k), of.steps(of.v), *of_k)
    launch("attention_backward_halves", (tiling.head_dim, tiling.keys), (key_blocks, 2), of.kv_heads, 256, args)
    args = (of.grad_out, of.out, of.lse, of.row_lse, of.delta, of.steps(of.grad_out), of.steps(of.out), *of.lse_strides, *of_q)
    launch("attention_backward_prepare", (q.dtype, tiling.head_dim, tiling.queries), (of.tiles,), of.heads, 256, args)

    kind, mask, mask_strides = mask_operand(mask, of.q, of.kv_len)
    scale = 1 / math.sqrt(of.head_dim) if scale is None else scale
    sizes = (of.heads, of.heads // of.kv_heads, of.seq_len, of.kv_len, of.head_dim, of.row_tiles, key_tiles, *window_sides(causal, window))
    problem = b"".join((of.steps(of.dk), of.steps(of.dv), mask_strides, struct.pack("<9if", *sizes, scale * math.log2(math.e))))
    args = (q_halves, grad_halves, k_halves, v_halves, of.row_lse, of.delta, of.sums, of.turns, of.dk, of.dv, mask, of.cu_q, of.cu_k, problem)
    template = tiling, kind, str(deterministic).lower()
    launch("attention_backward_split", template, (key_blocks,), of.kv_heads, tiling.threads, args, tiling.shared_bytes)
    launch("attention_backward_split_rows", (tiling,), (of.tiles,), of.heads, tiling.threads, (of.sums, of.dq, of.steps(of.dq), *of_q, scale))
    return of.results


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
