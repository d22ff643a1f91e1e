"""How each version of `masked_softmax` is launched, and on what it can run. x (batch, heads, queries, keys); the result is contiguous."""

from __future__ import annotations

import struct
from pathlib import Path

import torch

from labkernels.cuda.variants import ceil_div, kernel, vector_width
from labkernels.operation import Variant

FOLDER = Path(__file__).parent
WARPS = 4  # a block, where a warp owns a row or several
REGISTERS = {8: 16, 16: 16, 32: 32, 128: 32, 256: 32, 512: 32, 1024: 32}  # elements that a thread holds at most, by how many threads own a row


def v1_naive(x, mask=None, scale=1.0, causal=False) -> torch.Tensor:
    y, args = _arguments(x, mask, scale, causal)
    kernel(FOLDER / "v1_softmax_naive.cu", "masked_softmax_naive", x.dtype)(ceil_div(args[3], WARPS), 32 * WARPS, args)
    return y


def v2_registers(x, mask=None, scale=1.0, causal=False) -> torch.Tensor:
    threads, vectors, width = _split(x)
    y, args = _arguments(x, mask, scale, causal, width)
    softmax = kernel(FOLDER / "v2_softmax_registers.cu", "masked_softmax_registers", x.dtype, threads, vectors, width)
    rows_per_block = max(1, 32 * WARPS // threads)
    softmax(ceil_div(args[3], rows_per_block), threads * rows_per_block, args)
    return y


def _split(x: torch.Tensor) -> tuple[int, int, int] | None:
    """Threads a row, vectors a thread (a power of two) and elements a vector; None for rows that are too long."""
    width, keys = vector_width(16 // x.element_size(), x), x.shape[3]
    for threads, most in REGISTERS.items():
        vectors = 1 << (ceil_div(keys, threads * width) - 1).bit_length()
        if vectors * width <= (most if width > 1 or threads < 512 else most // 2):  # single elements take registers for addresses
            return threads, vectors, width
    return None


def _arguments(x, mask, scale, causal, width=0):
    """The result, and the kernels' arguments; `width` elements of a mask are read at once where they can be."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    batch, heads, queries, keys = x.shape
    layout = (0, 0, 0, 0, 0, 1)
    if mask is not None:
        mask = mask.expand(x.shape)
        kind = 1 if mask.dtype == torch.bool else 2 if mask.dtype == x.dtype else 3
        layout = (*mask.stride(), kind, int(width > 0 and vector_width(width, mask) == width))
    sizes = (batch * heads * queries, heads, queries, keys, float(scale), int(causal))
    return y, (x, mask, y, *sizes, struct.pack("<3q", *x.stride()[:3]), struct.pack("<4q2i", *layout))


def _accepts(x, mask=None, scale=1.0, causal=False) -> str | None:
    if x.stride(3) != 1 and x.shape[3] > 1:
        return "takes rows whose elements are neighbours in memory"
    return None if x.shape[:3].numel() < 2**31 else "counts rows in 31 bits"


def _accepts_registers(x, mask=None, scale=1.0, causal=False) -> str | None:
    return _accepts(x) or (None if _split(x) else "takes rows that fit in the registers of 1024 threads")


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "three walks over a row, masked on the way", FOLDER / "v1_softmax_naive.cu", _accepts),
        Variant("v2_registers", v2_registers, "the row is read once and stays in registers", FOLDER / "v2_softmax_registers.cu", _accepts_registers),
    )
}
