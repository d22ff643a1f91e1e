"""A kernel in PTX, the virtual instructions that NVRTC writes and ptxas turns into a GPU's own: on any machine."""

from __future__ import annotations

import re
from collections.abc import Iterator

from labkernels.cuda.compile import cuda_include_dirs, full_arch, plain_text
from labkernels.cuda.kernel import Kernel
from labkernels.cuda.listing import Listing, is_file_of, make_listing
from labkernels.cuda.source import Source
from labkernels.errors import ToolchainError

_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)\s+\d+(?:.*inlined_at\s+(\d+)\s+(\d+))?")
_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', re.MULTILINE)


def ptx_listing(kernel: Kernel, arch: str | None = None) -> Listing:
    """The kernel's PTX for `arch`, like `"sm_80"`; without it, for this machine's GPU, or sm_90.

    Raises CompileError with the compiler's messages, ToolchainError without NVRTC.
    """
    cubin = kernel.compiled(arch)
    text = _compile(kernel.source, kernel.name, cubin.arch)
    return make_listing(f"{kernel.name}: PTX for {cubin.arch}", kernel.source, _code(text, cubin.symbol, kernel.source))


def _compile(source: Source, name: str, arch: str) -> str:
    """NVRTC's PTX. Asked directly: cuda.core asks for a driver before it writes PTX."""
    from cuda.bindings import nvrtc

    folders = [*source.include_dirs, *cuda_include_dirs()]
    options = [f"-arch={full_arch(arch).replace('sm_', 'compute_')}", "-std=c++17", "-lineinfo", *(f"-I{folder}" for folder in folders)]
    program = _ask(nvrtc.nvrtcCreateProgram(plain_text(source).encode(), b"kernel.cu", 0, [], []))
    try:
        _ask(nvrtc.nvrtcAddNameExpression(program, name.encode()))
        _ask(nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options]))
        ptx = bytearray(_ask(nvrtc.nvrtcGetPTXSize(program)))
        _ask(nvrtc.nvrtcGetPTX(program, ptx))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return ptx.rstrip(b"\0").decode()


def _ask(answer: tuple):
    status, *values = answer
    if status != 0:
        raise ToolchainError(f"NVRTC writes no PTX: {status}")
    return values[0] if values else None


def _code(text: str, symbol: str, source: Source) -> Iterator[tuple[int | None, str]]:
    """The kernel's lines, each with the line of the source that it comes from; what is inlined counts where it is called."""
    entry = re.search(rf"^[^\n]*\.entry {re.escape(symbol)}\(.*?^}}", text, re.MULTILINE | re.DOTALL)
    if entry is None:
        raise ToolchainError(f"NVRTC's PTX has no entry {symbol}")
    own = {int(number) for number, path in _FILE.findall(text) if is_file_of(source, path)}
    called_from: dict[tuple[int, int], int | None] = {}  # a place that is inlined -> the source's line
    line = None
    for row in entry.group().splitlines():
        if place := _LOC.search(row):
            file, number, at_file, at_number = (int(value) if value else None for value in place.groups())
            if at_file is None:
                line = (number if file in own else None) if number else line
            else:
                line = at_number if at_file in own else called_from.get((at_file, at_number), line)
                called_from[file, number] = line
        elif row.strip():
            yield line, ("  " if row[0].isspace() else "") + " ".join(row.split())
