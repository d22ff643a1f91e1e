"""Which kernels the operations launch, found by running their variants without computing anything.

The variants' own code decides which file, kernel and template arguments serve which inputs, so no list of them can go stale. They run here on
PyTorch's `meta` tensors, which have shapes and strides and no memory; a launch notes its kernel and returns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode

from labkernels.cuda.kernel import Kernel
from labkernels.operation import Op, Shape, ops, product_of


def launched_kernels(*names: str) -> list[Kernel]:
    """The kernels, template instantiations among them, that the named operations (default: all) launch.

    On the shapes that they are checked on and on those that are measured, in all their dtypes. Ordered by file and name.
    """
    with _noted_launches() as kernels:
        for name in names or ops:
            _run_all(ops[name])
    return [kernels[key] for key in sorted(kernels)]


@contextmanager
def _noted_launches() -> Iterator[dict[tuple[str, str], Kernel]]:
    """Inside, no kernel runs: a launch puts its kernel into the dictionary, by file and name."""
    kernels = {}

    def note(kernel: Kernel, grid, block, args, shared_mem: int = 0, cluster=None) -> None:
        kernels[kernel.source.filename, kernel.name] = kernel

    launch, Kernel.__call__ = Kernel.__call__, note
    try:
        yield kernels
    finally:
        Kernel.__call__ = launch


def _run_all(op: Op) -> None:
    variants = [variant for variant in op.variants.values() if variant.source is not None and variant.source.suffix == ".cu"]
    for dtype in op.dtypes:
        for shape in _shapes(op, dtype):
            with _RandomMeta():
                inputs = op.make_inputs(torch.Generator(), "meta", dtype, **shape)
            for variant in variants:
                if variant.accepts(**inputs) is None:
                    variant.fn(**inputs)


def _shapes(op: Op, dtype: torch.dtype) -> Iterator[Shape]:
    yield from (*op.small_shapes, *op.check_shapes, *op.large_shapes)
    for sweep in (op.sweep, *op.record_sweeps):
        for sizes in product_of({name: values for name, values in sweep.items() if name != "dtype"}):
            yield op.complete_shape(dtype, **sizes)


class _RandomMeta(TorchFunctionMode):
    """`torch.randn` makes a meta tensor, whatever device it is asked for: nothing is drawn and nothing is stored."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.randn:
            return torch.empty(*args, device="meta")
        return function(*args, **(kwargs or {}))
