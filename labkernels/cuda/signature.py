"""The parameters of a kernel, as the compiler sees them.

The signature is never guessed from the source text. The compiler is asked for the kernel's function type, as a mangled name;
`demangle` makes that text such as `void (float const*, float*, int)`, and `parse_signature` reads it. The same for NVRTC and g++.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from labkernels.cuda.source import balanced, split_list
from labkernels.errors import ToolchainError


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel.

    `type` is its C++ type as one would write it (`const float*`), `element` what a pointer points to (`float`), or the type itself
    if it is no pointer. `size` is in bytes, None where only the compiler knows it. `name` is None where the source does not tell.
    """

    name: str | None
    type: str
    is_pointer: bool
    is_const: bool
    element: str
    size: int | None = None

    def __str__(self) -> str:
        return f"{self.type} {self.name}" if self.name else self.type


def parse_signature(
    text: str, names: Sequence[str | None] | None = None, sizes: Sequence[int] | None = None
) -> tuple[Parameter, ...]:
    """The parameters in a demangled function type like `void (float const*, int)`, or in the demangled name of
    `lk_signature<function type, lk_sizes<sizes>>`, which tells their sizes too.

    `names`, if there are as many as parameters, become the parameters' names; `sizes` are theirs in bytes.
    """
    start = text.find("(", text.find("<") + 1 if "lk_signature<" in text else 0)
    end = balanced(text, start) if start >= 0 else -1
    if end < 0:
        raise ValueError(f"not a function type: {text!r}")
    types = [t for t in split_list(text[start + 1 : end]) if t != "void"]
    if names is None or len(names) != len(types):
        names = [None] * len(types)
    if match := re.match(r", lk_sizes<([^>]*)>", text[end + 1 :]):
        sizes = [int(re.match(r"\d+", size).group()) for size in split_list(match.group(1))]
    return tuple(_parameter(*row) for row in zip(names, types, sizes or [None] * len(types), strict=True))


def _parameter(name: str | None, demangled: str, size: int | None) -> Parameter:
    is_pointer = demangled.endswith("*")
    element = demangled.removesuffix("*").rstrip()
    is_const = is_pointer and element.endswith(" const")
    element = element.removesuffix(" const") if is_const else element
    written = f"{'const ' if is_const else ''}{element}{'*' if is_pointer else ''}"
    return Parameter(name, written, is_pointer, is_const, element, size)


def demangle(symbol: str | bytes) -> str:
    """The C++ name or type that a mangled name stands for, through the C++ runtime library of this machine."""
    symbol = symbol.encode() if isinstance(symbol, str) else symbol
    status = ctypes.c_int()
    text = _cxa_demangle()(symbol, None, None, ctypes.byref(status))
    try:
        if status.value != 0:
            raise ValueError(f"not a mangled C++ name: {symbol!r}")
        return ctypes.cast(text, ctypes.c_char_p).value.decode()
    finally:
        _libc().free(text)


@functools.cache
def _cxa_demangle():
    for library in ("libstdc++.so.6", "libc++abi.so.1"):
        try:
            function = ctypes.CDLL(library).__cxa_demangle
        except (OSError, AttributeError):
            continue
        function.restype = ctypes.c_void_p
        function.argtypes = (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))
        return function
    raise ToolchainError("the C++ runtime library libstdc++.so.6 is missing; install g++ or libstdc++6")


@functools.cache
def _libc():
    libc = ctypes.CDLL(None)
    libc.free.argtypes = (ctypes.c_void_p,)
    return libc
