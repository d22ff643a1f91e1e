"""How v5, attention on tensor cores, is launched: its tilings, which of them is for what, and what it can run on."""

from __future__ import annotations

import math
import struct
from dataclasses import astuple, dataclass
from pathlib import Path

import torch

from labkernels.attention.launches import MOST
from labkernels.attention.visible import mask_operand, window_sides
from labkernels.cuda.variants import ceil_div, kernel, strides, vector_width
from labkernels.operation import Variant

FILE = Path(__file__).parent / "v5_tensor_cores.cu"
DTYPES = (torch.bfloat16, torch.float16)
LOG2_OF_E = 1.4426950408889634
L2_BYTES = 24 << 20  # of the L2 cache, to be filled with K and V of the heads whose blocks run side by side


@dataclass(frozen=True)
class Tiling:
    """How the work is split; the fields are explained in v5_tensor_cores.cu."""

    head_dim: int
    warps: int
    row_tiles: int
    keys: int
    kept: int
    ahead: bool
    blocks: int

    @property
    def queries(self) -> int:
        return 16 * self.warps * self.row_tiles

    @property
    def shared_bytes(self) -> int:
        return (self.queries + 4 * self.keys) * self.head_dim * 2

    def __str__(self) -> str:
        return f"Tiling<{', '.join(str(value).lower() for value in astuple(self))}>"


TILINGS = {  # of aligned rows without a mask
    "d32": Tiling(32, 4, 2, 64, 2, False, 2),
    "d64": Tiling(64, 4, 2, 64, 4, False, 2),
    "d96": Tiling(96, 4, 2, 64, 0, False, 2),
    "d128": Tiling(128, 4, 2, 32, 4, False, 2),
    "d256": Tiling(256, 4, 1, 32, 0, False, 2),
}
ROOMY_TILINGS = {  # smaller, so that registers are left for what a mask or unaligned rows need
    "d32": Tiling(32, 4, 2, 32, 2, False, 2),
    "d64": Tiling(64, 4, 2, 32, 4, False, 2),
    "d96": Tiling(96, 4, 1, 64, 0, False, 2),
    "d128": Tiling(128, 4, 1, 64, 0, False, 2),
    "d256": Tiling(256, 4, 1, 16, 0, False, 2),
}


def attention(q, k, v, causal=False, scale=None, *, window=None, mask=None, return_lse=False):
    return configured(best_tiling(q, k, v, mask), q, k, v, causal, scale, window=window, mask=mask, return_lse=return_lse)


def configured(tiling: Tiling | str, q, k, v, causal=False, scale=None, *, window=None, mask=None, return_lse=False):
    """v5 with this tiling, or the one of TILINGS with this name. Its head_dim is that of q or more."""
    _, heads, seq_len, _ = q.shape
    q, scale = _with_positive_scale(q, scale)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device) if return_lse else None
    lse_strides = (heads * seq_len, seq_len, 1)
    packed = None, None, k.shape[2], seq_len
    _launch(tiling, q, k, v, out, lse, lse_strides, packed, causal, scale, window, mask)
    return (out, lse) if return_lse else out


def attention_varlen(
    q, k, v, cu_seqlens_q, cu_seqlens_k, causal=False, scale=None, *, window=None, return_lse=False, max_seqlen_q=None
):  # fmt: skip
    """v5 on packed sequences. q (total_q, heads, head_dim), k and v (total_k, kv_heads, head_dim)."""
    if max_seqlen_q is None:
        max_seqlen_q = int(cu_seqlens_q.diff().max()) if len(cu_seqlens_q) > 1 else 0
    q, scale = _with_positive_scale(q, scale)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[1::-1], dtype=torch.float32, device=q.device) if return_lse else None
    batch = len(cu_seqlens_q) - 1
    views = [tensor.transpose(0, 1).expand(batch, -1, -1, -1) for tensor in (q, k, v, out)]  # (batch, heads, total, head_dim), all batches the same
    packed = cu_seqlens_q, cu_seqlens_k, k.shape[0], max_seqlen_q
    _launch(best_tiling(q, k, v), *views, lse, (0, q.shape[0], 1), packed, causal, scale, window, None)
    return (out, lse) if return_lse else out


def _with_positive_scale(q, scale) -> tuple[torch.Tensor, float]:
    """q and scale, so that scale is positive: the kernel looks for the largest score before it is scaled."""
    scale = 1 / math.sqrt(max(1, q.shape[-1])) if scale is None else scale
    return (q, scale) if scale > 0 else (-q, -scale) if scale < 0 else (0 * q, 1.0)


def best_tiling(q, k, v, mask=None) -> Tiling:
    """The tiling for these inputs, head_dim last."""
    easy = mask is None and vector_width(8, q, k, v) == 8
    return next(tiling for tiling in (TILINGS if easy else ROOMY_TILINGS).values() if tiling.head_dim >= q.shape[-1])


def _launch(tiling, q, k, v, out, lse, lse_strides, packed, causal, scale, window, mask) -> None:
    """q, k, v and out (batch, heads, seq, head_dim); packed: (cu_seqlens_q, cu_seqlens_k, keys, queries), or None, None and the lengths."""
    tiling = TILINGS[tiling] if isinstance(tiling, str) else tiling
    cu_seqlens_q, cu_seqlens_k, kv_len, seq_len = packed
    batch, heads, _, head_dim = q.shape
    group = heads // max(1, k.shape[1])
    tiles = ceil_div(seq_len, tiling.queries)
    if batch * heads * tiles == 0:
        return
    kind, mask, mask_strides = mask_operand(mask, q, kv_len)
    sizes = (batch, heads, group, seq_len, kv_len, head_dim, *window_sides(causal, window))
    problem = b"".join((*map(strides, (q, k, v, out)), struct.pack("<3q", *lse_strides), mask_strides, struct.pack("<8if", *sizes, scale * LOG2_OF_E)))
    run = kernel(FILE, "attention_tensor_cores", q.dtype, tiling, kind, vector_width(8, q, k, v), str(cu_seqlens_q is not None).lower())
    at_a_time = min(batch * heads, group * max(1, L2_BYTES // max(1, 4 * kv_len * head_dim)))
    at_a_time = max(at_a_time, ceil_div(batch * heads, MOST))  # z has no more places
    grid = at_a_time, tiles, ceil_div(batch * heads, at_a_time)
    run(grid, 32 * tiling.warps, (q, k, v, out, lse, mask, cu_seqlens_q, cu_seqlens_k, problem + bytes(4)), tiling.shared_bytes)


def accepts(q, k, v, *_, **__) -> str | None:
    if q.dtype not in DTYPES:
        return "takes bfloat16 and float16"
    if not 1 <= q.shape[-1] <= 256:
        return "takes a head_dim of 1 to 256"
    strided = [name for name, tensor in (("q", q), ("k", k), ("v", v)) if tensor.stride(-1) != 1 and tensor.shape[-1] > 1]
    if strided:
        return f"takes rows whose elements are neighbours in memory, {strided[0]}'s are not"
    if q.is_cuda and torch.cuda.get_device_capability(q.device) < (8, 0):
        return "needs a GPU of compute capability 8.0 or more"
    return None


IDEA = "tensor cores: weights stay in registers between the products, keys come while others are used"
VARIANT = Variant("v5_tensor_cores", attention, IDEA, FILE, accepts)
VARLEN = Variant("v5_tensor_cores", attention_varlen, IDEA, FILE, accepts)
