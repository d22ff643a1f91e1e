"""The reader's functions and what they refer to, packed for another process: those of a notebook's cells as well as a module's.

cloudpickle does it: the code of a function that no module holds travels with the globals that it names. Kernels travel as their source.
"""

from __future__ import annotations

import functools
import importlib
import io
import linecache
import operator
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import cloudpickle

from labkernels.errors import ArgumentError
from labkernels.operation import Op, Registry, ops

_FIRST = ("labkernels.cuda.numba_cuda",)  # modules to be imported before any that a function names: Numba must learn of its simulator


class CannotBeSent(ArgumentError):
    """Something that can only live in the process that made it; the text says what."""

    def naming(self, caller: str, function: str) -> ArgumentError:
        """What `caller` says to who gave it `function`, and the ways out."""
        return ArgumentError(
            f"{caller}: {function} cannot be sent to the process where it would run, for it refers to what lives only in this one ({self}). "
            "Make that inside the function; or pass isolated=False to run it here, where a kernel that hangs or crashes takes this process "
            "with it"
        )


def pack(value) -> bytes:
    """`value` as bytes for `cloudpickle.loads`. CannotBeSent if something in it can only live in this process."""
    with io.BytesIO() as file:
        try:
            _Pickler(file).dump(value)
        except Exception as error:  # anything: each type refuses in its own way
            raise CannotBeSent(f"{type(error).__name__}: {error}") from error
        return file.getvalue()


class _Pickler(cloudpickle.Pickler):
    """Takes functions under `functools.cache` too, their caches left behind; the registry's operations and odd modules go by name."""

    def reducer_override(self, value):
        if isinstance(value, ModuleType) and type(value) is not ModuleType and sys.modules.get(value.__name__) is value:
            return importlib.import_module, (value.__name__,)  # torch.ops and others that make their attributes when asked
        if isinstance(value, Op) and value.name in ops and ops[value.name] is value:
            return operator.getitem, (ops, value.name)
        if isinstance(value, Registry):
            return _registry, ()
        if isinstance(value, functools._lru_cache_wrapper):
            parameters = value.cache_parameters()
            return _cached, (value.__wrapped__, parameters["maxsize"], parameters["typed"])
        return super().reducer_override(value)


def _registry() -> Registry:
    return ops


def _cached(function, maxsize: int | None, typed: bool):
    return functools.lru_cache(maxsize, typed)(function)


@dataclass(frozen=True)
class Surroundings:
    """Where this process works and what it knows that is in no file, for another process to be like it."""

    folder: str = field(default_factory=os.getcwd)
    path: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))
    first: tuple[str, ...] = field(default_factory=lambda: tuple(name for name in _FIRST if name in sys.modules))
    sources: dict[str, tuple] = field(default_factory=lambda: _cells())

    def adopt(self) -> None:
        """Make this process like the one where `self` was made."""
        os.chdir(self.folder)
        sys.path[:] = self.path
        for name in self.first:
            importlib.import_module(name)
        linecache.cache.update(self.sources)


def _cells() -> dict[str, tuple]:
    """What `linecache` knows of sources that are no files: the notebook's cells, so that errors in them show their lines."""
    entries = {name: entry for name, entry in linecache.cache.items() if len(entry) == 4 and not Path(name).exists()}
    return {name: (size, None, lines, name) for name, (size, _, lines, _) in entries.items()}
