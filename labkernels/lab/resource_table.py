"""What every kernel of the package takes on a GPU: `data/resources.csv`, and how a change of it is judged.

`labkernels resources` compiles with NVRTC, on any machine, and compares; `labkernels resources --update` writes the table anew. Each row has
a digest of the code that it is of, so that who trusts the table need compile only what has changed since.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path

from labkernels.cuda.compile import base_name, nvrtc_version
from labkernels.cuda.kernel import Kernel
from labkernels.cuda.source import INCLUDE_DIR, Source, without_comments
from labkernels.errors import LabKernelsError

ARCHITECTURES = ("sm_80", "sm_90a")
HOPPER_HEADERS = {"cluster.cuh", "mbarrier.cuh", "setmaxnreg.cuh", "tma.cuh", "wgmma.cuh"}
PACKAGE = Path(__file__).parents[1]
TABLE = PACKAGE.parent / "data" / "resources.csv"

_Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Row:
    """One kernel on one architecture. Registers a thread; all else in bytes: spills and stack a thread, static shared memory a block."""

    file: str  # within labkernels/: "softmax/v3_registers.cu"
    kernel: str
    instantiation: str  # its template arguments: "float, 32, 4, 4"
    arch: str
    registers: int
    spill_stores: int
    spill_loads: int
    shared: int
    stack: int
    nvrtc: str  # the version that compiled it: "13.0"
    source: str = ""  # `digest` of what was compiled

    @property
    def key(self) -> _Key:
        return self.file, self.kernel, self.instantiation, self.arch

    def __str__(self) -> str:
        arguments = f"<{self.instantiation}>" if self.instantiation else ""
        return f"{self.file}: {self.kernel}{arguments} on {self.arch}"


def compile_rows(kernels: Iterable[Kernel], progress: Callable = iter, trusted: Iterable[Row] = ()) -> list[Row]:
    """Compile each kernel for each architecture, two at a time, and read what it takes; a row each, in order.

    What a row of `trusted` says is not compiled again if that row is of the same code and the same version of NVRTC. `progress` is wrapped
    around the iteration, as tqdm would. Raises CompileError for the first kernel that does not compile.
    """
    import cuda.core  # noqa: F401  two threads must not both be the first

    known = {(row.key, row.source, row.nvrtc): row for row in trusted}
    version = nvrtc_version()

    def row(kernel: Kernel, arch: str) -> Row:
        unknown = _row_of(kernel, arch, version)
        return known.get((unknown.key, unknown.source, version)) or _compiled(unknown, kernel)

    jobs = [(kernel, arch) for kernel in kernels for arch in architectures(Path(kernel.source.filename), kernel.name)]
    with ThreadPoolExecutor(max_workers=2) as pool:
        return sorted(progress(pool.map(lambda job: row(*job), jobs)), key=lambda row: row.key)


def digest(source: Source) -> str:
    """Of the source, the package's headers that it includes, and its definitions; comments and white space do not count."""
    texts = [source.text, *(path.read_text(encoding="utf-8") for path in sorted(source.headers(), key=lambda path: path.name))]
    code = [" ".join(without_comments(text).split()) for text in texts]
    return hashlib.sha256(repr((code, source.defines)).encode()).hexdigest()[:12]


def architectures(file: Path, kernel: str = "") -> tuple[str, ...]:
    """Those of ARCHITECTURES for which a source, or this kernel of it, is meant.

    Not sm_80 if the source includes a header of Hopper's instructions, itself or by way of another, or if it converts to 8-bit floats or from
    them, for which a GPU needs sm_89: everywhere, or in the instantiation for them.
    """
    converts = "pack_e4m3" in file.read_text(encoding="utf-8") or "Scheme::kFp8" in kernel
    return ARCHITECTURES[1:] if converts or _includes(file) & HOPPER_HEADERS else ARCHITECTURES


def read_table(path: Path = TABLE) -> list[Row]:
    """The rows of the table; LabKernelsError if there is none, or if its columns are not a Row's."""
    if not path.is_file():
        raise LabKernelsError(f"{path} is missing; `labkernels resources --update` writes it")
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != [field.name for field in fields(Row)]:
            raise LabKernelsError(f"{path} has other columns than this version writes; `labkernels resources --update` writes it anew")
        numbers = [field.name for field in fields(Row) if field.type == "int"]
        return [Row(**{**line, **{name: int(line[name]) for name in numbers}}) for line in reader]


def write_table(rows: Iterable[Row], path: Path = TABLE) -> None:
    """Write the table, one row a line."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Row)])
        writer.writerows(astuple(row) for row in rows)


def complaints(recorded: Iterable[Row], compiled: Iterable[Row]) -> list[str]:
    """What is wrong with the kernels or with the table, one line each; an empty list if all is well.

    A spill where the table has none is always wrong, and so is a kernel that the table lacks or a row without a kernel. Everything else must be
    as recorded when the same version of NVRTC compiled it. Another version allocates registers in its own way: it may take a quarter more
    of them, change stack and shared memory, and spill more or less where there were spills before.
    """
    recorded, compiled = ({row.key: row for row in rows} for rows in (recorded, compiled))
    found = [f"{row}: is in the table, and nothing launches it" for key, row in recorded.items() if key not in compiled]
    for key, row in compiled.items():
        if key not in recorded:
            spilled = f"; it spills {_spilled(row)} bytes" if _spilled(row) else ""
            found.append(f"{row}: is not in the table{spilled}")
        else:
            found += _differences(recorded[key], row)
    return found


def kernels_in_sources() -> set[tuple[str, str]]:
    """Every `__global__` function in the package's CUDA sources: (file, kernel)."""
    return {(_within_package(path), name) for path in PACKAGE.rglob("*.cu") for name in Source.from_file(path).kernels()}


def _differences(was: Row, now: Row) -> list[str]:
    if _spilled(now) and not _spilled(was):
        return [f"{now}: spills, which it did not: {now.spill_stores} bytes stored, {now.spill_loads} loaded, {now.registers} registers"]
    if now.nvrtc != was.nvrtc:
        most = was.registers + was.registers // 4
        versions = f"NVRTC {was.nvrtc} used {was.registers}, {now.nvrtc} uses {now.registers}"
        return [f"{now}: more than a quarter more registers: {versions}"] if now.registers > most else []
    before, after = asdict(was), asdict(now)
    changed = [f"{name} {before[name]} -> {after[name]}" for name in before if before[name] != after[name] and name != "source"]
    return [f"{now}: {', '.join(changed)}"] if changed else []


def _row_of(kernel: Kernel, arch: str, version: str) -> Row:
    """Which row it is, without what the kernel takes."""
    _, _, arguments = kernel.name.partition("<")
    file = _within_package(Path(kernel.source.filename))
    return Row(file, base_name(kernel.name), arguments.removesuffix(">"), arch, 0, 0, 0, 0, 0, version, digest(kernel.source))


def _compiled(row: Row, kernel: Kernel) -> Row:
    taken = kernel.resources(row.arch)
    return replace(
        row,
        registers=taken.registers,
        spill_stores=taken.spill_store_bytes,
        spill_loads=taken.spill_load_bytes,
        shared=taken.shared_bytes,
        stack=taken.stack_bytes,
    )


def _spilled(row: Row) -> int:
    return row.spill_stores + row.spill_loads


def _includes(file: Path) -> set[str]:
    """The names of the package's headers that a source includes, directly or not."""
    found: set[str] = set()
    waiting = [file]
    while waiting:
        including = waiting.pop()
        text = including.read_text(encoding="utf-8") if including.is_file() else ""  # a cell has no file
        for name in re.findall(r'^\s*#include\s+"([^"]+)"', text, re.MULTILINE):
            path = next((folder / name for folder in (including.parent, INCLUDE_DIR) if (folder / name).is_file()), None)
            if path is not None and path.name not in found:
                found.add(path.name)
                waiting.append(path)
    return found


def _within_package(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else path.name
