"""How v6 of `attention` is launched: which tiles for which head_dim, and on what it can run."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from labkernels.attention.visible import mask_operand, window_sides
from labkernels.cuda.kernel import Kernel
from labkernels.cuda.tensor_map import tensor_map
from labkernels.cuda.variants import c_type, ceil_div, hopper_refusal, processors, strides
from labkernels.operation import Variant

FILE = Path(__file__).with_name("v6_hopper.cu")
MAX_HEAD_DIM = 256


@dataclass(frozen=True)
class Config:
    """`consumers` warpgroups with 64 queries each, tiles of `block_k` keys, `stages` of them in flight, `q_buffers` tiles of queries."""

    consumers: int
    block_k: int
    stages: int
    q_buffers: int

    @property
    def block_q(self) -> int:
        return 64 * self.consumers

    def shared_mem(self, head_dim: int) -> int:
        """sizeof what AttentionLayout (hopper.cuh) lays out, for a head_dim that is a multiple of 64."""
        rows = self.q_buffers * self.block_q + 2 * self.stages * self.block_k
        return rows * head_dim * 2 + 16 * (self.q_buffers + 2 * self.stages)


CONFIGS = {64: Config(3, 128, 2, 2), 128: Config(2, 128, 2, 2), 192: Config(2, 96, 2, 1), 256: Config(2, 80, 2, 1)}


def best_config(head_dim: int, seq_len: int, causal: bool) -> Config:
    """The fastest of those measured on an H200. Few short rows do not fill three warpgroups."""
    return Config(2, 128, 3, 2) if head_dim <= 64 and causal and seq_len <= 512 else CONFIGS[padded(head_dim)]


def padded(head_dim: int) -> int:
    """HEAD_DIM in v6_hopper.cu."""
    return 64 * ceil_div(head_dim, 64)


def v6_hopper(q, k, v, causal=False, scale=None, *, window=None, mask=None, return_lse=False):
    config = best_config(q.shape[3], q.shape[2], causal)
    return configured(config, q, k, v, causal, scale, window=window, mask=mask, return_lse=return_lse)


def v6_hopper_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, causal=False, scale=None, *, window=None, return_lse=False, max_seqlen_q=None):
    longest = q.shape[0] if max_seqlen_q is None else max_seqlen_q
    config, packed = best_config(q.shape[2], longest, causal), (cu_seqlens_q, cu_seqlens_k, longest)
    return configured(config, q, k, v, causal, scale, window=window, return_lse=return_lse, packed=packed)


@functools.lru_cache(None)
def _kernel(config: Config, dtype: torch.dtype, head_dim: int, mask: int) -> Kernel:
    sizes = (head_dim, config.consumers, config.block_k, config.stages, config.q_buffers, mask)
    return Kernel(FILE, f"attention_hopper<{c_type(dtype)}, {', '.join(map(str, sizes))}>")


def configured(config: Config, q, k, v, causal=False, scale=None, *, window=None, mask=None, return_lse=False, packed=None):
    """v6 with this configuration. `packed` is (cu_seqlens_q, cu_seqlens_k, max_seqlen_q): then q, k and v have no axis of batches."""
    cu_q, cu_k, seq_len = packed or (None, None, q.shape[2])
    batches = len(cu_q) - 1 if packed else q.shape[0]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    result = out
    if packed:
        q, k, v, out = (x.transpose(0, 1)[None] for x in (q, k, v, out))
    if k.stride(1) == v.stride(1) == 0:  # one head of keys and values, shown as many
        k, v = k[:, :1], v[:, :1]
    heads, head_dim, kv_heads, kv_len = q.shape[1], q.shape[3], k.shape[1], k.shape[2]
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device) if return_lse else None
    lse_strides = (0, 0) if lse is None else (0 if packed else lse.stride(0), lse.stride(1))

    tiles = (q, config.block_q), (k, config.block_k), (v, config.block_k), (out, 64)
    maps = [tensor_map(tensor, (1, 1, rows, 64), 128) for tensor, rows in tiles]
    kind, mask, mask_strides = mask_operand(mask, q, kv_len)
    scale = (1 / math.sqrt(head_dim) if scale is None else scale) * math.log2(math.e)
    sizes = (batches, heads, heads // kv_heads, seq_len, kv_len, head_dim)
    args = (*maps, out, strides(out), lse, *lse_strides, mask, mask_strides, cu_q, cu_k, *sizes, *window_sides(causal, window), scale)
    blocks = min(processors(q), ceil_div(seq_len, config.block_q) * heads * batches)
    kernel = _kernel(config, q.dtype, padded(head_dim), kind)
    kernel(blocks, 128 * (config.consumers + 1), args, config.shared_mem(padded(head_dim)))
    if lse is None:
        return result
    return result, lse[0] if packed else lse


def tiles_refusal(queries: int, matrices: int) -> str | None:
    """Schedule (hopper.cuh) counts tiles of queries, 64 or more each, of all heads of all batches in 32 bits."""
    return None if ceil_div(queries, 64) * matrices < 2**30 else "takes fewer than 2^30 tiles of 64 queries, heads and batches together"


def accepts_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, causal=False, scale=None, *, max_seqlen_q=None, **_) -> str | None:
    longest = q.shape[0] if max_seqlen_q is None else max_seqlen_q
    return accepts(q, k, v, causal, scale) or tiles_refusal(longest, q.shape[1] * (len(cu_seqlens_q) - 1))


def accepts(q, k, v, causal=False, scale=None, **_) -> str | None:
    if q.dtype not in (torch.bfloat16, torch.float16):
        return "takes bfloat16 and float16"
    if q.shape[-1] > MAX_HEAD_DIM:
        return f"takes a head_dim of at most {MAX_HEAD_DIM}"
    if scale is not None and scale <= 0:
        return "takes a scale above 0"
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        rows = [stride for stride, length in zip(tensor.stride()[:-1], tensor.shape[:-1]) if length > 1]
        if tensor.stride(-1) != 1 or tensor.shape[-1] % 8 or tensor.data_ptr() % 16 or any(stride % 8 for stride in rows):
            return f"takes rows that lie on 16 bytes, {name}'s do not"
    return hopper_refusal(q) or (tiles_refusal(q.shape[2], q.shape[0] * q.shape[1]) if q.dim() == 4 else None)


V6 = Variant("v6_hopper", v6_hopper, "TMA and wgmma: one warpgroup's softmax under another one's products", FILE, accepts)
V6_VARLEN = Variant("v6_hopper", v6_hopper_varlen, V6.idea, FILE, accepts_varlen)
