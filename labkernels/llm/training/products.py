"""Products of a block in training whose sums go on in registers (products.cu): SwiGLU's, forward and backward, and the projection that RoPE turns.

Notable: each is a function that takes what its kernel takes, and `accepts_...` tells why a kernel does not take it, or None; who calls them has another
way for that case.
"""

from __future__ import annotations

from pathlib import Path

import torch

from labkernels.cuda.tensor_map import tensor_map
from labkernels.cuda.variants import ceil_div, kernel, processors
from labkernels.matmul import hopper
from labkernels.rope.launch import position_layout

FILE = Path(__file__).with_name("products.cu")
ROWS, COLUMNS, DEPTH, THREADS = 128, 256, 64, 384  # of a tile, a stage, a block
BAND = 16
LAG = {"swiglu_forward": 2, "swiglu_backward": 1, "turned_projection": 2}  # stages that a block's second warpgroup is behind the first
HEADS = (64, 128)  # that turned_projection takes


def shared_mem(stages: int, slabs: int) -> int:
    """sizeof what Layout (matmul/hopper.cuh) lays out, and four mbarriers."""
    return stages * (ROWS + COLUMNS) * 128 + slabs * 64 * 128 + 16 * stages + 32


def swiglu_forward(x: torch.Tensor, w1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x (tokens, embed), w1 (2 ffn, embed) -> x w1^T (tokens, 2 ffn), and silu(gate) * up (tokens, ffn)."""
    (m, k), n = x.shape, len(w1)
    pre, hidden = x.new_empty(m, n), x.new_empty(m, n // 2)
    maps = _map(x, ROWS), _map(w1, COLUMNS // 2), _map(pre, 64), _map(hidden, 64)
    _launch("swiglu_forward", x, m, n, shared_mem(4, 4), (*maps, m, n, k, BAND))
    return pre, hidden


def swiglu_backward(
    grad: torch.Tensor, w2: torch.Tensor, pre: torch.Tensor, with_hidden: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """grad (tokens, embed), w2 (embed, ffn), pre (tokens, 2 ffn) -> the gradient of pre, and silu(gate) * up."""
    (m, k), n = grad.shape, w2.shape[1]
    d_pre, hidden = torch.empty_like(pre), grad.new_empty(m, n) if with_hidden else None
    width, stages, slabs = (64, 3, 10) if with_hidden else (32, 4, 4)  # Pieces in products.cu
    pieces = [tensor_map(each, (64, width), 2 * width) for each in (pre, d_pre, hidden if with_hidden else d_pre)]
    maps = _map(grad, ROWS), _map(w2, DEPTH), *pieces
    _launch("swiglu_backward", grad, m, n, shared_mem(stages, slabs), (*maps, m, n, k, BAND), str(with_hidden).lower())
    return d_pre, hidden


def turned_projection(
    x: torch.Tensor, w: torch.Tensor, angles: torch.Tensor, positions: torch.Tensor | None, seq: int, head_dim: int, turned_heads: int
) -> torch.Tensor:
    """x (tokens, embed), w (heads head_dim, embed) -> x w^T, its first heads turned. positions: 0, 1, ... seq - 1 again and again, or (tokens / seq, seq)."""
    (m, k), n = x.shape, len(w)
    out = x.new_empty(m, n)
    angles = angles.contiguous()
    maps = _map(x, ROWS), _map(w, COLUMNS), _map(out, 64)
    args = (*maps, m, n, k, BAND, angles, positions, position_layout(positions), len(angles), seq, turned_heads * head_dim)
    _launch("turned_projection", x, m, n, shared_mem(4, 4), args, head_dim)
    return out


def accepts_swiglu(x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor) -> str | None:
    if w2.shape[1] % 128:
        return "takes an ffn that is a multiple of 128"
    return _accepts(x, w1) or _accepts(x, w2.t())


def accepts_turned(x: torch.Tensor, w: torch.Tensor, angles: torch.Tensor, head_dim: int) -> str | None:
    if head_dim not in HEADS:
        return f"takes heads of {' or '.join(map(str, HEADS))}"
    if angles.dim() != 2 or angles.shape[1] != head_dim:
        return "takes a table of angles for whole heads"
    return _accepts(x, w)


def _accepts(x: torch.Tensor, w: torch.Tensor) -> str | None:
    if not len(x):
        return "takes at least one token"
    return hopper.accepts(x, w.t())


def _launch(name: str, beside: torch.Tensor, m: int, n: int, shared: int, args: tuple, *flags) -> None:
    blocks = min(processors(beside), ceil_div(m, ROWS) * ceil_div(n, COLUMNS))
    kernel(FILE, name, beside.dtype, *flags, LAG[name])(blocks, THREADS, args, shared)


def _map(matrix: torch.Tensor, rows: int):
    """Boxes of so many rows and 128 bytes."""
    return tensor_map(matrix, (rows, DEPTH), 128)
