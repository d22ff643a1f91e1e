"""How each version of `attention` is launched, and on what it can run.

Each takes q (batch, heads, seq_len, head_dim), k and v (batch, kv_heads, kv_len, head_dim), all of one dtype, and returns a new contiguous
tensor of q's shape and dtype. `causal` is aligned bottom right; a query that may see no key gets zeros. `scale` is 1 / sqrt(head_dim)
unless given. Up to v3 they know no window and no mask, and give no log-sum-exp; from v4 on all of `attention`'s options. v4 is launched in
warp_tiles.py, v5 in tensor_cores.py, v6 in hopper.py, v7 in split.py.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from labkernels.attention import hopper, split, tensor_cores, warp_tiles
from labkernels.attention.launches import MOST
from labkernels.cuda.variants import ceil_div, kernel, numba_refusal, strides, vector_width
from labkernels.operation import Variant

FOLDER = Path(__file__).parent
ONLINE_WARPS = 8  # queries a block in v2


def v1_naive(q, k, v, causal=False, scale=None) -> torch.Tensor:
    from labkernels.attention import v1_naive

    return v1_naive.attention(q, k, v, causal, _scale(q, scale))


def v1_naive_cuda(q, k, v, causal=False, scale=None) -> torch.Tensor:
    batch, heads, seq_len, head_dim, kv_heads, kv_len = _sizes(q, k)
    file, group = FOLDER / "v1_naive.cu", heads // kv_heads
    scores = torch.empty((batch, heads, seq_len, kv_len), dtype=torch.float32, device=q.device)
    out = torch.empty_like(q)

    grid = (ceil_div(kv_len, 32), ceil_div(seq_len, 8), batch * heads)
    sizes = (seq_len, kv_len, head_dim, group)
    kernel(file, "attention_scores", q.dtype)(grid, (32, 8), (q, k, scores, *sizes, causal, _scale(q, scale)))
    rows = batch * heads * seq_len
    kernel(file, "attention_softmax")(ceil_div(rows, 8), 256, (scores, rows, kv_len))
    grid = (ceil_div(head_dim, 32), ceil_div(seq_len, 8), batch * heads)
    kernel(file, "attention_output", q.dtype)(grid, (32, 8), (scores, v, out, *sizes))
    return out


def v2_online(q, k, v, causal=False, scale=None) -> torch.Tensor:
    batch, heads, seq_len, head_dim, _, _ = _sizes(q, k)
    online = kernel(FOLDER / "v2_online.cu", "attention_online", q.dtype, ceil_div(head_dim, 32))
    return _launch(online, (ceil_div(seq_len, ONLINE_WARPS), heads, batch), 32 * ONLINE_WARPS, 0, q, k, v, causal, scale)


def v3_tiled(q, k, v, causal=False, scale=None) -> torch.Tensor:
    return tiled(best_tile(q, k), q, k, v, causal, scale)


def tiled(tile: tuple[int, int], q, k, v, causal=False, scale=None) -> torch.Tensor:
    """v3 with a tile of so many queries and keys: (128, 128), (64, 128) or (64, 32)."""
    batch, heads, seq_len, head_dim, _, _ = _sizes(q, k)
    padded = _padded(head_dim)
    attention = kernel(FOLDER / "v3_tiled.cu", "attention_tiled", q.dtype, padded, *tile, vector_width(4, q, k, v))
    grid = (heads, batch, ceil_div(seq_len, tile[0]))
    return _launch(attention, grid, 2 * tile[0], _tile_bytes(padded, *tile), q, k, v, causal, scale)


def best_tile(q, k) -> tuple[int, int]:
    """The largest tile of v3 that fits in shared memory, is not mostly empty, and leaves enough blocks to keep the GPU busy."""
    batch, heads, seq_len, head_dim, _, kv_len = _sizes(q, k)
    if q.is_cuda:
        gpu = torch.cuda.get_device_properties(q.device)
        processors, shared_memory = gpu.multi_processor_count, gpu.shared_memory_per_block_optin
    else:
        processors, shared_memory = 132, 227 * 1024  # the emulator plays an H200
    blocks = batch * heads * ceil_div(seq_len, 128)
    if seq_len > 64 and 3 * blocks >= 2 * processors and _tile_bytes(_padded(head_dim), 128, 128) <= shared_memory:
        return 128, 128
    if kv_len > 32 and _tile_bytes(_padded(head_dim), 64, 128) <= shared_memory:
        return 64, 128
    return 64, 32


def _launch(attention, grid, block, shared_mem, q, k, v, causal, scale) -> torch.Tensor:
    _, heads, seq_len, head_dim, kv_heads, kv_len = _sizes(q, k)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    sizes = (seq_len, kv_len, head_dim, heads // kv_heads)
    attention(grid, block, (q, k, v, out, strides(q), strides(k), strides(v), *sizes, causal, _scale(q, scale)), shared_mem)
    return out


def _sizes(q, k) -> tuple[int, int, int, int, int, int]:
    """(batch, heads, seq_len, head_dim, kv_heads, kv_len)"""
    return *q.shape, k.shape[1], k.shape[2]


def _scale(q, scale: float | None) -> float:
    return 1 / math.sqrt(q.shape[-1]) if scale is None else scale


def _padded(head_dim: int) -> int:
    """HEAD_DIM in v3_tiled.cu."""
    return 32 * ceil_div(head_dim, 32)


def _tile_bytes(head_dim: int, block_q: int, block_k: int) -> int:
    """sizeof(Shared<head_dim, block_q, block_k>) in v3_tiled.cu."""
    depth = 16
    return 4 * ((head_dim + block_k) * (block_q + 4) + 2 * depth * max(block_k + 4, head_dim))


def _plain(accepts):
    """`accepts` of a variant that takes none of the options."""

    def accepts_plain(q, k, v, causal=False, scale=None, *, window=None, mask=None, return_lse=False) -> str | None:
        given = {"takes no window": window is not None, "takes no mask": mask is not None, "gives no log-sum-exp": return_lse}
        return next((refusal for refusal, refused in given.items() if refused), None) or accepts(q, k, v)

    return accepts_plain


@_plain
def _contiguous(q, k, v) -> str | None:
    strided = [name for name, tensor in (("q", q), ("k", k), ("v", v)) if not tensor.is_contiguous()]
    return f"takes contiguous tensors, {strided[0]} is not" if strided else _matrices_refusal(q)


def _matrices_refusal(q) -> str | None:
    return f"takes at most {MOST} heads of all batches" if q.shape[0] * q.shape[1] > MOST else None


def _rows(max_head_dim: int):
    @_plain
    def accepts(q, k, v) -> str | None:
        if q.shape[3] > max_head_dim:
            return f"takes a head_dim of at most {max_head_dim}"
        if max(q.shape[:2]) > MOST:
            return f"takes at most {MOST} batches, and as many heads"
        if max(tensor.stride(2) for tensor in (q, k, v)) >= 1 << 24:
            return "takes rows less than 2^24 elements apart"
        strided = [name for name, tensor in (("q", q), ("k", k), ("v", v)) if tensor.stride(3) != 1 and tensor.shape[3] > 1]
        return f"takes rows whose elements are neighbours in memory, {strided[0]}'s are not" if strided else None

    return accepts


@_plain
def _numba(q, k, v) -> str | None:
    return numba_refusal(q, steps=2 * q.numel() * k.shape[2]) or _matrices_refusal(q)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "Numba CUDA: three kernels, the N x N matrix in memory", FOLDER / "v1_naive.py", _numba),
        Variant("v1_naive_cuda", v1_naive_cuda, "CUDA C++: three kernels, the N x N matrix in memory", FOLDER / "v1_naive.cu", _contiguous),
        Variant("v2_online", v2_online, "one warp a query, online softmax: no matrix, O(N) memory", FOLDER / "v2_online.cu", _rows(256)),
        Variant("v3_tiled", v3_tiled, "flash attention in shared memory: K and V once for 128 queries", FOLDER / "v3_tiled.cu", _rows(128)),
        warp_tiles.VARIANT,
        tensor_cores.VARIANT,
        hopper.V6,
        split.V7,
    )
}

VARLEN = {  # those that take packed sequences: `attention_varlen`
    variant.name: variant
    for variant in (
        warp_tiles.VARLEN,
        tensor_cores.VARLEN,
        hopper.V6_VARLEN,
    )
}
