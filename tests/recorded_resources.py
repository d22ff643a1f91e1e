"""What a kernel takes of a GPU, not compiled again where data/resources.csv has it for the same code and the same NVRTC.

tests/test_resources_table.py holds the table to the compiler. A kernel that has changed since, or that is not in it, is compiled.
"""

from __future__ import annotations

import functools
from pathlib import Path

from labkernels.cuda import Kernel
from labkernels.cuda.compile import base_name, nvrtc_version
from labkernels.lab.resource_table import PACKAGE, Row, digest, read_table


def taken(kernel: Kernel, arch: str) -> Row:
    """The row of the table, or one like it."""
    _, _, arguments = kernel.name.partition("<")
    file = Path(kernel.source.filename).relative_to(PACKAGE).as_posix()
    wanted = (file, base_name(kernel.name), arguments.removesuffix(">"), arch, nvrtc_version(), digest(kernel.source))
    if row := _recorded().get(wanted):
        return row
    found = kernel.resources(arch)
    return Row(*wanted[:4], found.registers, found.spill_store_bytes, found.spill_load_bytes, found.shared_bytes, found.stack_bytes, *wanted[4:])


@functools.cache
def _recorded() -> dict[tuple[str, ...], Row]:
    return {(*row.key, row.nvrtc, row.source): row for row in read_table()}
