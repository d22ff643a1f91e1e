"""Matrices as rows of vectors: what the elementwise variants read off the tensors they are given."""

from __future__ import annotations

import torch

from labkernels.cuda.variants import ceil_div, vector_width

THREADS = 256
MOST_VECTORS = 2**31 - 1


def as_rows(tensor: torch.Tensor) -> torch.Tensor:
    """(..., cols) as (rows, cols), without a copy where strides allow."""
    return tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1])


def width_of(*tensors: torch.Tensor) -> int:
    """How many elements of every row of these matrices are moved at once: 16 bytes of them, or 1."""
    return vector_width(16 // tensors[0].element_size(), *tensors)


def split_in_vectors(width: int, *tensors: torch.Tensor) -> tuple[int, int]:
    """How many vectors of `width` these matrices of one shape have in all, and how many a row; where no row has a gap, all are one row."""
    rows, cols = tensors[0].shape
    vectors = rows * cols // width
    return vectors, vectors if all(tensor.is_contiguous() for tensor in tensors) else cols // width


def blocks_for(count: int, vectors: int) -> int:
    return ceil_div(count, THREADS * vectors)


def vectors_refusal(*tensors: torch.Tensor | None) -> str | None:
    """Why kernels that take rows of vectors cannot take these matrices, or None."""
    given = [tensor for tensor in tensors if tensor is not None]
    if any(tensor.stride(-1) != 1 and tensor.shape[-1] > 1 for tensor in given):
        return "takes rows whose elements are neighbours in memory"
    if given[0].numel() > MOST_VECTORS and given[0].numel() > MOST_VECTORS * width_of(*given):
        return f"counts vectors in 31 bits: at most {MOST_VECTORS} of them"
    return None


def dtype_and_device_problem(tensors: dict[str, torch.Tensor | None], dtypes: tuple[torch.dtype, ...]) -> str | None:
    """What keeps these tensors from being used together: a dtype that no kernel takes, several dtypes, several devices."""
    from labkernels.operation import dtype_name

    (first_name, first), *others = ((name, tensor) for name, tensor in tensors.items() if tensor is not None)
    if first.dtype not in dtypes:
        return f"{first_name} is {dtype_name(first.dtype)}; it must be {', '.join(map(dtype_name, dtypes[:-1]))} or {dtype_name(dtypes[-1])}"
    for name, tensor in others:
        if tensor.dtype != first.dtype:
            return f"{name} is {dtype_name(tensor.dtype)}, {first_name} is {dtype_name(first.dtype)}; both must be equal"
        if tensor.device != first.device:
            return f"{name} is on {tensor.device}, {first_name} is on {first.device}; both must be on one device"
    return None
