"""The quiet lines under a `%%cuda` cell: what its kernels take on a GPU, as NVRTC says, with or without one."""
from __future__ import annotations

import html
from dataclasses import dataclass

from labkernels.errors import CompileError, ToolchainError

ARCHITECTURES = ("sm_80", "sm_90a")


@dataclass(frozen=True)
class CompileReport:
    """One line a kernel; shows small and grey in a notebook."""

    lines: tuple[str, ...]

    def __repr__(self) -> str:
        return "\n".join(self.lines)

    def _repr_html_(self) -> str:
        rows = "<br>".join(html.escape(line) for line in self.lines)
        return f'<div style="color: #808080; font-size: 85%">{rows}</div>'


def compile_report(kernels: dict) -> CompileReport | None:
    """Registers, shared memory and spills of each kernel for sm_80 and sm_90a; None where NVRTC is not installed.

    A kernel with Hopper's instructions has no line for sm_80. One that the emulator runs and NVRTC refuses for both gets NVRTC's first message
    instead: it would not run on a GPU.
    """
    try:
        return CompileReport(tuple(_line(name, kernel) for name, kernel in kernels.items()))
    except ToolchainError:
        return None


def _line(name: str, kernel) -> str:
    compiled, refused = [], None
    for arch in ARCHITECTURES:
        try:
            compiled.append(_resources(kernel, arch))
        except CompileError as error:
            refused = error
    if not compiled:
        return f"{name}: does not compile for a GPU: {str(refused).splitlines()[0]}"
    return f"{name}: " + "; ".join(compiled) + (" (for no older GPU)" if refused else "")


def _resources(kernel, arch: str) -> str:
    resources = kernel.resources(arch)
    text = f"{arch} {resources.registers} registers"
    if resources.shared_bytes:
        text += f", {resources.shared_bytes} B shared"
    spilled = resources.spill_store_bytes + resources.spill_load_bytes
    return text + (f", {spilled} B spilled" if spilled else ", no spills")
