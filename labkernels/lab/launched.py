"""Which kernels the operations launch, found by running their variants without computing anything.

The variants' own code decides which file, kernel and template arguments serve which inputs, so no list of them can go stale. They run here on
PyTorch's `meta` tensors, which have shapes and strides and no memory; a launch notes its kernel and returns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode

from labkernels.cuda.compile import base_name
from labkernels.cuda.kernel import Kernel
from labkernels.operation import Op, Shape, ops, product_of


def launched_kernels(*names: str) -> list[Kernel]:
    """The kernels, template instantiations among them, that the named operations (default: all) launch, ordered by file and name.

    Those for the shapes that are measured, in float32 and in one 16-bit dtype; and of every kernel that these leave out one instantiation,
    the first that a shape on which the operation is checked asks for.
    """
    found: dict[tuple[str, str], Kernel] = {}
    for name in names or ops:
        op = ops[name]
        for dtype in op.dtypes:
            if dtype != torch.float16 or torch.bfloat16 not in op.dtypes:  # the same code
                found |= _launched(op, dtype, _measured_shapes(op, dtype))
    known = {(file, base_name(kernel)) for file, kernel in found}
    for name in names or ops:
        for dtype in ops[name].dtypes:
            for (file, kernel), launched in _launched(ops[name], dtype, _checked_shapes(ops[name])).items():
                if (file, base_name(kernel)) not in known:
                    known.add((file, base_name(kernel)))
                    found[file, kernel] = launched
    return [found[key] for key in sorted(found)]


@contextmanager
def _noted_launches() -> Iterator[dict[tuple[str, str], Kernel]]:
    """Inside, no kernel runs: a launch puts its kernel into the dictionary, by file and name."""
    kernels = {}

    def note(kernel: Kernel, grid, block, args, shared_mem: int = 0, cluster=None, early: bool = False) -> None:
        kernels[kernel.source.filename, kernel.name] = kernel

    launch, Kernel.__call__ = Kernel.__call__, note
    try:
        yield kernels
    finally:
        Kernel.__call__ = launch


def _launched(op: Op, dtype: torch.dtype, shapes: Iterable[Shape]) -> dict[tuple[str, str], Kernel]:
    """The kernels that any variant launches for these shapes, by file and name."""
    variants = [variant for variant in op.variants.values() if variant.source is not None and variant.source.suffix == ".cu"]
    with _noted_launches() as kernels:
        for shape in shapes:
            with _RandomMeta():
                inputs = op.make_inputs(torch.Generator(), "meta", dtype, **shape)
            for variant in variants:
                if variant.accepts(**inputs) is None:
                    variant.fn(**inputs)
    return kernels


def _measured_shapes(op: Op, dtype: torch.dtype) -> Iterator[Shape]:
    for sweep in (op.sweep, *op.record_sweeps):
        for sizes in product_of({name: values for name, values in sweep.items() if name != "dtype"}):
            yield op.complete_shape(dtype, **sizes)


def _checked_shapes(op: Op) -> Iterator[Shape]:
    yield from (*op.small_shapes, *op.check_shapes, *op.large_shapes)


class _RandomMeta(TorchFunctionMode):
    """`torch.randn` makes a meta tensor, whatever device it is asked for: nothing is drawn and nothing is stored."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.randn:
            return torch.empty(*args, device="meta")
        return function(*args, **(kwargs or {}))
