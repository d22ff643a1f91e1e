"""How v3 of `attention_backward` is launched, and on what it can run."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import torch

from labkernels.attention.launches import launches
from labkernels.attention.visible import mask_operand, window_sides
from labkernels.cuda.kernel import Kernel
from labkernels.cuda.tensor_map import tensor_map
from labkernels.cuda.variants import c_type, ceil_div, strides

FILE = Path(__file__).with_name("v3_hopper.cu")
BLOCK_K = 128


def block_q(head_dim: int) -> int:
    return 128 if head_dim <= 64 else 64


@functools.lru_cache(None)
def _kernel(name: str, dtype: torch.dtype, *arguments) -> Kernel:
    return Kernel(FILE, f"{name}<{c_type(dtype)}, {', '.join(str(a).lower() for a in arguments)}>")


def shared_mem(head_dim: int) -> int:
    rows = block_q(head_dim)
    tiles = 2 * BLOCK_K * head_dim * 2 + 4 * rows * head_dim * 2 + 2 * rows * BLOCK_K * 2
    return tiles + rows * head_dim * 4 + 4 * rows * 4 + 8 * 9


def backward(grad, q, k, v, out, lse, causal=False, scale=None, *, window=None, mask=None, deterministic=False, packed=None, into=None, finish=None):
    """`into`: where dk and dv are written. finish(sums, scale): what makes dq of its sums, in the place of attention_backward_finish; then dq is None."""
    cu_q, cu_k, seq_len, kv_len = packed or (None, None, q.shape[2], k.shape[2])
    batches = len(cu_q) - 1 if packed else q.shape[0]
    results = [None if finish else torch.empty(q.shape, dtype=q.dtype, device=q.device)]
    results += into or [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k, v)]
    dq, dk, dv = results
    if packed:
        grad, q, k, v, out, dq, dk, dv = (None if x is None else x.transpose(0, 1)[None] for x in (grad, q, k, v, out, dq, dk, dv))
        lse = lse[None]
    lse = lse if lse.stride(-1) == 1 else lse.contiguous()
    heads, head_dim, kv_heads = q.shape[1], q.shape[3], k.shape[1]
    padded, rows = 64 * ceil_div(head_dim, 64), block_q(head_dim)
    tiles = ceil_div(seq_len, rows)
    row_tiles = q.shape[2] // rows + batches if packed else tiles
    head_count = heads if packed else batches * heads
    values = torch.empty((2, head_count * row_tiles * rows), dtype=torch.float32, device=q.device)
    sums = torch.zeros((head_count * row_tiles * rows * padded // 256, 256), dtype=torch.float32, device=q.device)
    turns = torch.zeros(2 * head_count * row_tiles, dtype=torch.int32, device=q.device) if deterministic else None
    lse_strides = (0 if packed else lse.stride(0), lse.stride(1))
    prepare = _kernel("attention_backward_prepare", q.dtype, padded, rows)
    args = (grad, out, lse, *values, strides(grad), strides(out), *lse_strides, cu_q, heads, seq_len, head_dim, row_tiles)
    for first, some in launches(batches, heads):
        prepare((tiles, some * heads), 256, (*args, first))

    boxes = (q, rows), (k, BLOCK_K), (v, BLOCK_K), (grad, rows), (dk, 64), (dv, 64)
    maps = [tensor_map(tensor, (1, 1, size, 64), 128) for tensor, size in boxes]
    sums_map = tensor_map(sums, (rows * padded // 512, 256))
    kind, mask, mask_strides = mask_operand(mask, q, k.shape[2])
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    args = (
        *maps[:4], sums_map, *maps[4:], dk, dv, strides(dk), strides(dv), *values, turns,
        mask, mask_strides, cu_q, cu_k, heads, heads // kv_heads, seq_len, kv_len, head_dim, row_tiles, *window_sides(causal, window),
        scale * math.log2(math.e),
    )  # fmt: skip
    main = _kernel("attention_backward_hopper", q.dtype, padded, rows, kind, deterministic)
    for first, some in launches(batches, kv_heads):
        main((ceil_div(kv_len, BLOCK_K), some * kv_heads), 384, (*args, first), shared_mem(padded))
    if finish is not None:
        finish(sums, scale)
        return tuple(results)
    to_rows = _kernel("attention_backward_finish", q.dtype, padded, rows)
    for first, some in launches(batches, heads):
        to_rows((tiles, some * heads), 256, (sums, dq, strides(dq), cu_q, heads, seq_len, head_dim, row_tiles, scale, first))
    return tuple(results)
