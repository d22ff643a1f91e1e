"""Arrays as a kernel of the simulator sees them: every index checked, and what nobody has written shows."""

from __future__ import annotations

import functools
import linecache
import re
import sys

import numpy as np
from numba.cuda import types
from numba.cuda.np import numpy_support
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray, FakeShape, FakeWithinKernelCUDAArray


class Array(FakeWithinKernelCUDAArray):
    """An array as a kernel sees it, each index compared with the shape first."""

    def __init__(self, array: np.ndarray, name: str):
        super().__init__(FakeCUDAArray(array))
        self.__dict__.update(_array=array, _name=name, _lengths=array.shape, shape=FakeShape(array.shape), size=array.size, ndim=array.ndim)

    def __getitem__(self, index):
        try:
            value = self._array[index] if (min(index) if type(index) is tuple else index) >= 0 else self._slowly(index)
        except (IndexError, TypeError):  # TypeError: slices, and names of a record's fields
            value = self._slowly(index)
        if isinstance(value, np.ndarray):
            return Array(value, self._name)
        return FakeWithinKernelCUDAArray(FakeCUDAArray(value)) if isinstance(value, np.void) else value

    def __setitem__(self, index, value):
        self._check(index)
        self._array[index] = value._array if isinstance(value, Array) else value

    def _slowly(self, index):
        self._check(index)
        return self._array[index]

    def __getattr__(self, attribute: str):
        value = super().__getattr__(attribute)
        return Array(value._item._ary, f"{self._name}.{attribute}") if isinstance(value, FakeWithinKernelCUDAArray) else value

    def reshape(self, *shape):
        return Array(self._array.reshape(*shape), self._name)

    def _check(self, index) -> None:
        lengths = self._lengths
        if type(index) is not tuple:
            index = (index,)
        if len(index) > len(lengths):
            raise IndexError(f"{self._name}{_brackets(index)}: {self._name} has {len(lengths)} axes, the index {len(index)}")
        for axis, (i, length) in enumerate(zip(index, lengths)):
            try:
                inside = 0 <= i < length
            except TypeError:  # a slice, or the name of a record's field
                continue
            if inside is False or inside is np.False_:
                where = f" along axis {axis}" if len(lengths) > 1 else ""
                raise IndexError(f"{self._name}{_brackets(index)} is out of bounds: indices{where} are 0 to {length - 1}")


def _brackets(index: tuple) -> str:
    return f"[{', '.join(str(i) for i in index)}]"


def local_array(self, shape, dtype, alignment=None) -> Array:
    return Array(_unwritten(shape, dtype), _assigned_name(sys._getframe(1), "local array"))


def shared_array(self, shape, dtype, alignment=None) -> Array:
    """One array a block for each call in the source, and all dynamic ones (shape 0) in the same memory."""
    caller = sys._getframe(1)
    name = _assigned_name(caller, "shared array")
    if shape == 0:
        dtype = _numpy_dtype(dtype)
        return Array(np.frombuffer(self._dynshared.data, dtype=dtype, count=self._dynshared_size // dtype.itemsize), name)
    place = caller.f_code, caller.f_lasti
    found = self._allocations.get(place)
    return Array(self._allocations.setdefault(place, _unwritten(shape, dtype)) if found is None else found, name)


def _unwritten(shape, dtype) -> np.ndarray:
    array = np.empty(shape, _numpy_dtype(dtype))
    if array.dtype.names is None and array.dtype.kind in "fciu":
        array.fill(poison(array.dtype))
    return array


def poison(dtype: np.dtype):
    return np.nan if dtype.kind in "fc" else np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max


def _numpy_dtype(dtype) -> np.dtype:
    return numpy_support.as_dtype(dtype) if isinstance(dtype, types.Type) else np.dtype(dtype)


def _assigned_name(frame, otherwise: str) -> str:
    """`tile` for a call in `tile = cuda.shared.array(...)`."""
    return _name_in(linecache.getline(frame.f_code.co_filename, frame.f_lineno)) or otherwise


@functools.lru_cache(1024)
def _name_in(line: str) -> str | None:
    match = re.match(r"\s*(\w+)\s*=[^=]", line)
    return match.group(1) if match else None
