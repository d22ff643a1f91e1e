"""The classic mistakes of matmul kernels: what each computes, so that a wrong result can be recognised and named."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from labkernels.matmul.reference import ACTIVATIONS, finish

_TILES = (4, 8, 16, 32, 64, 128)


def hints(failure) -> str | None:
    """A sentence about the likely mistake behind a wrong result, or None."""
    inputs = failure.inputs
    a, b = inputs["a"], inputs["b"]
    if failure.reason != "mismatch" or a.shape[0] * a.shape[1] * b.shape[1] > 1 << 24:
        return None  # trying every mistake on a large case takes longer than the check did
    epilogue = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in inputs.items() if name not in "ab"}
    return failure.matching([*_product_mistakes(a, b, epilogue), *_epilogue_mistakes(a.double() @ b.double(), **epilogue)])


def _product_mistakes(a, b, epilogue) -> Iterator[tuple[str, torch.Tensor]]:
    """Pairs of `what the result is` and the wrong result itself, (m, n)."""
    for what, product in _wrong_products(a, b):
        yield what, finish(product, **epilogue)
    right = finish(a.double() @ b.double(), **epilogue)
    yield "right, but written column by column: c[row, col] belongs at row * n + col", right.t().reshape(right.shape)


def _wrong_products(a, b) -> Iterator[tuple[str, torch.Tensor]]:
    (m, k), n = a.shape, b.shape[1]
    for name, matrix in (("a", a), ("b", b)):
        dense = _as_if_contiguous(matrix)
        if dense is not None:
            wrong = (dense, b.double()) if name == "a" else (a.double(), dense)
            strides = f"{name}'s are {tuple(matrix.stride())}"
            yield f"the product with {name} read as if it were contiguous: rows and columns are as far apart as the strides say, and {strides}", torch.mm(*wrong)
    a, b = a.double(), b.double()
    if k == n > 1:
        yield "a times b transposed", a @ b.t()
    if m == k > 1:
        yield "a transposed times b", a.t() @ b
    yield "twice the product", 2 * (a @ b)
    for tile in _TILES:
        whole = k // tile * tile
        if 0 < whole < k:
            yield f"the product without the last {k - whole} of {k} columns of a: a partial tile must be multiplied too", a[:, :whole] @ b[:whole]
    for tile in _TILES:
        last = (k - 1) // tile * tile
        if last > 0:
            yield f"the product of the first {tile} of {k} columns of a only", a[:, :tile] @ b[:tile]
            yield f"the product of columns {last} to {k - 1} of a only: the sum must not begin anew with each tile of {tile}", a[:, last:] @ b[last:]
    if k > 1:
        yield "the product without its last term: k - 1 of k columns of a", a[:, : k - 1] @ b[: k - 1]


def _as_if_contiguous(matrix) -> torch.Tensor | None:
    """What one reads who takes the rows to follow each other; None where they do, or where that would leave the tensor's memory."""
    room = matrix.untyped_storage().nbytes() // matrix.element_size() - matrix.storage_offset()
    if matrix.is_contiguous() or matrix.numel() > room:
        return None
    return matrix.as_strided(matrix.shape, (matrix.shape[1], 1)).double()


def _epilogue_mistakes(product, bias, activation, residual) -> Iterator[tuple[str, torch.Tensor]]:
    activate = ACTIVATIONS[activation]
    added = 0 if residual is None else residual
    if bias is not None:
        yield "the right thing without the bias", activate(product) + added
        if product.shape[0] <= bias.shape[0]:
            yield "the right thing with the bias of the row, not of the column", activate(product + bias[: product.shape[0], None]) + added
    if residual is not None:
        yield "the right thing without the residual", finish(product, bias, activation)
        yield "the right thing with the residual added before the activation", activate(finish(product, bias) + residual)
    if activation is not None:
        yield "the right thing without the activation", finish(product, bias, None, residual)
        if bias is not None:
            yield "the right thing with the bias added after the activation", activate(product) + bias + added
        for other in ACTIVATIONS:
            if other not in (None, activation):
                yield f"the right thing with the activation {other} instead of {activation}", finish(product, bias, other, residual)
