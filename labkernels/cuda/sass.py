"""A kernel in SASS, the instructions that a GPU executes, as NVIDIA's nvdisasm reads them from the compiled kernel."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator

from labkernels.cuda.kernel import Kernel
from labkernels.cuda.listing import Listing, is_file_of, make_listing
from labkernels.cuda.source import Source
from labkernels.errors import ToolchainError

_PLACE = re.compile(r'//## File "([^"]+)", line (\d+)')
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(.*?)\s*;?\s*$")
_LABEL = re.compile(r"^(\.L_\w+):")


def sass_listing(kernel: Kernel, arch: str | None = None) -> Listing:
    """The kernel's SASS for `arch`, like `"sm_80"`; without it, for this machine's GPU, or sm_90.

    Raises CompileError; ToolchainError without NVRTC or nvdisasm.
    """
    cubin = kernel.compiled(arch)
    run = subprocess.run([nvdisasm(), "-gi", "-c", str(cubin.path)], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise ToolchainError(f"nvdisasm cannot read {kernel.name} for {cubin.arch}: {run.stderr.strip()}")
    code = list(_code(run.stdout, cubin.symbol, kernel.source))
    return make_listing(f"{kernel.name}: SASS for {cubin.arch}", kernel.source, _without_padding(code))


def nvdisasm() -> str:
    """The path of nvdisasm: a Python package's, a toolkit's, or the one on PATH. Raises ToolchainError with how to get it."""
    try:
        from cuda.pathfinder import find_nvidia_binary_utility

        path = find_nvidia_binary_utility("nvdisasm")
    except ImportError:  # cuda-pathfinder before 1.4
        path = None
    path = path or shutil.which("nvdisasm")
    if path is None:
        raise ToolchainError("nvdisasm, which shows SASS, is missing; `pip install nvidia-cuda-nvdisasm` brings it. %ptx needs none.")
    return path


def _code(text: str, symbol: str, source: Source) -> Iterator[tuple[int | None, str]]:
    """The kernel's instructions and the labels that they jump to, each with the line of the source that it comes from."""
    body = re.search(rf"^{re.escape(symbol)}:$(.*?)(?:^//-----|\Z)", text, re.MULTILINE | re.DOTALL)
    if body is None:
        raise ToolchainError(f"nvdisasm shows no function {symbol}")
    jumped_to = set(re.findall(r"`\((\.L_\w+)\)", body.group(1)))
    line = None
    for row in body.group(1).splitlines():
        if place := _PLACE.search(row):  # what is inlined is followed by the place that calls it: the last one stays
            line = int(place.group(2)) if is_file_of(source, place.group(1)) else None
        elif instruction := _INSTRUCTION.match(row):
            yield line, instruction.group(1)
        elif (label := _LABEL.match(row)) and label.group(1) in jumped_to:
            yield line, f"{label.group(1)}:"


def _without_padding(code: list[tuple[int | None, str]]) -> list[tuple[int | None, str]]:
    """Without what fills the code's last 128 bytes: NOPs, and before them a jump to itself."""
    end = len(code)
    while end > 0 and code[end - 1][1] == "NOP":
        end -= 1
    if end > 1 and code[end - 1][1] == f"BRA `({code[end - 2][1].rstrip(':')})":
        end -= 2
    return code[:end]
