"""The named arrays in a kernel's library: static shared memory and device globals, from its symbol table."""

from __future__ import annotations

import functools
import re
import subprocess
from dataclasses import dataclass, replace

from labkernels.cuda.signature import demangle
from labkernels.errors import ToolchainError

TLS_ANCHOR = "_ZL22lk_tls_anchor_variable"


@dataclass(frozen=True)
class Symbol:
    """An array or variable of a library. `low` is relative to the TLS anchor if `shared`, else to the load address.

    `hidden`: the compiler's own, which the kernel touches without the user's knowing.
    """

    name: str
    low: int
    size: int
    shared: bool
    hidden: bool = False


@functools.cache
def symbols(library) -> tuple[Symbol, ...]:
    """All `__shared__` variables and device globals of a kernel's library, by address."""
    try:
        table = subprocess.run(["readelf", "-sW", str(library)], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ToolchainError(f"cannot read the symbols of {library} with readelf (package binutils): {error}") from error
    found: dict[tuple, Symbol] = {}
    anchor = 0
    for line in table.splitlines():
        match = re.match(r"\s*\d+:\s+([0-9a-f]+)\s+(\d+|0x[0-9a-f]+)\s+(TLS|OBJECT)\s+\w+\s+\w+\s+(\w+)\s+(\S+)$", line)
        if not match or match.group(4) == "UND":
            continue
        value, size, kind, _, mangled = match.groups()
        if mangled.startswith(TLS_ANCHOR):
            anchor = int(value, 16)
            continue
        hidden = mangled.startswith(("_ZGV", "__tls_guard"))  # whether a shared array's constructor has run
        name = mangled if hidden else _plain_name(mangled)
        if name is not None:
            shared = kind == "TLS"
            found[shared, int(value, 16), name] = Symbol(name, int(value, 16), int(size, 0), shared, hidden)
    moved = [replace(s, low=s.low - anchor) if s.shared else s for s in found.values()]
    return tuple(sorted(moved, key=lambda s: (s.shared, s.low)))


def _plain_name(mangled: str) -> str | None:
    """The name as the source spells it, or None for what is not the user's."""
    try:
        text = demangle(mangled) if mangled.startswith("_Z") else mangled
    except ValueError:
        text = mangled
    if re.match(r"(vtable|typeinfo|guard|TLS |lk::|std::|non-virtual)", text) or text.startswith(("_", "completed", "DW.")):
        return None
    text = re.sub(r" \[clone .*\]$|\.\d+$", "", text)
    return text.rsplit("::", 1)[-1]
