"""Launches of the kernels that copy rows by number: an embedding looks words up with them, padding is taken out and put back with them."""

from __future__ import annotations

from pathlib import Path

import torch

from labkernels.cuda.variants import ceil_div, kernel

FOLDER = Path(__file__).parent
THREADS, VECTORS = 256, 2
UNITS = {16: "uint4", 8: "uint2", 4: "unsigned", 2: "unsigned short"}  # what is moved as one, by its bytes


def gather_naive(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """out[i] = table[index[i]], zeros where index[i] is no row. table (rows, cols), index of any shape; returns (*index.shape, cols)."""
    return _gather(table, index, table.element_size())


def gather_vectors(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The same, in units of up to 16 bytes."""
    return _gather(table, index, _unit_bytes(table), VECTORS)


def _unit_bytes(table: torch.Tensor) -> int:
    row_bytes = table.shape[1] * table.element_size()
    distances = (row_bytes, table.stride(0) * table.element_size(), table.data_ptr() if table.device.type != "meta" else 0)
    return next(size for size in UNITS if not any(distance % size for distance in distances))


def gather_refusal(table: torch.Tensor, index: torch.Tensor) -> str | None:
    """Why neither of them can take these, or None."""
    return "takes rows whose elements are neighbours in memory" if table.stride(1) != 1 and table.shape[1] > 1 else None


def vectors_refusal(table: torch.Tensor, index: torch.Tensor) -> str | None:
    """Why `gather_vectors` cannot take these, or None."""
    elements = index.numel() * table.shape[1]
    if elements >= 2**31 and elements * table.element_size() >= 2**31 * _unit_bytes(table):
        return "counts units in 31 bits: of 16 bytes where rows are whole multiples of that, else of 8, 4 or 2"
    return gather_refusal(table, index)


def _gather(table: torch.Tensor, index: torch.Tensor, size: int, vectors: int | None = None) -> torch.Tensor:
    out = torch.empty((*index.shape, table.shape[1]), dtype=table.dtype, device=table.device)
    index = index.contiguous()
    each = size // table.element_size()  # elements in a unit
    cols, units = table.shape[1] // each, out.numel() // each
    file, name = ("v2_gather_vectors.cu", "gather_vectors") if vectors else ("v1_gather_naive.cu", "gather_naive")
    gather = kernel(FOLDER / file, name, UNITS[size], *([vectors] if vectors else []))
    pointers = (_as_units(table, size), index, index.dtype == torch.int64, _as_units(out, size))
    sizes = (units if vectors else index.numel(), cols, table.shape[0], table.stride(0) // each)
    gather(ceil_div(units, THREADS * (vectors or 1)), THREADS, (*pointers, *sizes))
    return out


def _as_units(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """The same memory under a dtype that the kernel's units are made of."""
    return tensor.view(torch.int16 if size == 2 else torch.int32) if tensor.element_size() != 1 else tensor
