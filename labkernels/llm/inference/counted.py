"""What a pass launches and moves, counted on any machine: PyTorch's operations and this package's kernels, and the bytes that they are given.

Notable:
- a launch is a kernel of this package, or an operation of PyTorch's that reads or writes floating-point numbers; views are none, nor is bookkeeping in
  integers
- bytes are those of the tensors that go in and come out, each once an operation; of an embedding's table the rows that are looked up. So a kernel that is
  given a whole cache counts as reading all of it: make the cache as large as the text

    with counted() as seen: engine.step()
    seen.launches, seen.bytes, seen.by_name
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

from labkernels.cuda.kernel import Kernel

_LOOK_UP = ("begin_step",)  # kernels that read of tables, the embedding's and RoPE's, one row for each that they write


@dataclass
class Counts:
    """`by_name`: launches by the operation's or kernel's name."""

    by_name: Counter = field(default_factory=Counter)
    bytes: int = 0

    @property
    def launches(self) -> int:
        return self.by_name.total()

    def note(self, name: str, tensors: Iterable[torch.Tensor]) -> None:
        self.by_name[name] += 1
        self.bytes += sum(t.nbytes for t in {(t.data_ptr(), t.shape): t for t in tensors}.values())


@contextmanager
def counted() -> Iterator[Counts]:
    """Inside, everything runs as ever and is counted."""
    counts = Counts()
    launch = Kernel.__call__

    def noted(kernel: Kernel, grid, block, args, *others, **options) -> None:
        name = kernel.name.partition("<")[0]
        given = _tensors(list(args))
        if name in _LOOK_UP:
            rows = min(map(len, given))
            given = [each[:rows] for each in given]
        counts.note(name, given)
        launch(kernel, grid, block, args, *others, **options)

    Kernel.__call__ = noted
    try:
        with _Operations(counts):
            yield counts
    finally:
        Kernel.__call__ = launch


class _Operations(TorchFunctionMode):
    def __init__(self, counts: Counts):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))  # what it is made of is not counted again: in here the mode is off
        given, made = _tensors((args, kwargs)), _tensors(result)
        name = (resolve_name(function) or getattr(function, "__name__", "")).rpartition(".")[2]
        if name in ("__get__", "__set__") or name.startswith(("empty", "new_empty")) or not (made or name == "__setitem__"):
            return result
        storages = {t.untyped_storage().data_ptr() for t in given}
        in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or "out" in (kwargs or {})
        if not in_place and all(t.untyped_storage().data_ptr() in storages for t in made):
            return result  # a view
        moved = [t for t in (made if name == "embedding" else given + made) if t.is_floating_point()]
        if moved:
            self.counts.note(name, moved)
        return result


def _tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
