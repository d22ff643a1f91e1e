"""The host's C++ compiler, the emulator's runtime library and its precompiled prelude: what every emulated kernel is built with."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from labkernels.cuda import cache
from labkernels.cuda.source import Source
from labkernels.errors import ToolchainError

SHIM_DIR = Path(__file__).parent / "shim"
RUNTIME_SOURCES = ("fiber.cpp", "scheduler.cpp", "cluster.cpp", "async.cpp", "async_copies.cpp", "wgmma.cpp", "signals.cpp", "launch.cpp")
RUNTIME_SOURCES += ("sanitizer.cpp", "sanitizer_memory.cpp", "sanitizer_synchronisation.cpp", "sanitizer_async.cpp", "sanitizer_cluster.cpp", "profiler.cpp", "hooks.cpp")
_RUNTIME_FLAGS = ("-std=c++17", "-O2", "-g1", "-fPIC", "-pthread", "-Wall", "-Wextra")


@dataclass(frozen=True)
class Mode:
    """How kernels are compiled: for speed, or so that the sanitizer or the profiler sees every access."""

    name: str
    flags: tuple[str, ...]


_COMMON = ("-std=c++17", "-fPIC", "-Werror=return-type", "-fno-exceptions", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing")
_COMMON += ("-fsigned-char", "-fwrapv")  # as on a GPU
_COMMON += ("-fdiagnostics-column-unit=byte",)
_COMMON += ("-g1", "-gdwarf-4", "-fno-var-tracking")  # lines and inlined calls; names of arrays are in the symbol table
_COMMON += ("-fno-gnu-unique",)  # else kernels that instantiate the same template would share its __shared__ arrays across libraries
RELEASE = Mode("release", (*_COMMON, "-O2", "-ftree-vectorize", "-march=native"))
_WATCHED = (
    (*_COMMON, "-O1", "-march=native", "-DLK_INSTRUMENTED=1", "-fno-omit-frame-pointer")
    + ("-fstack-reuse=none",)  # registers that a wgmma uses keep their place to themselves
    + ("-fno-tree-sra", "-fno-ipa-sra")  # a float4 is read at once, not as four floats
    + ("-finline-small-functions", "-finline-functions")  # what a call takes by value from memory is seen only once inlined
    + ("-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0", "--param=tsan-distinguish-volatile=1")
)
SANITIZED = Mode("sanitized", (*_WATCHED, "-fsanitize=bounds,alignment"))
PROFILED = Mode("profiled", (*_WATCHED, "-fsanitize-coverage=trace-pc", "-fno-reorder-blocks", "-fsanitize=object-size"))


@functools.cache
def compiler() -> str:
    """The C++ compiler: CXX if set, else g++. Raises ToolchainError if there is none, or if it is not g++ 11 or newer."""
    name = os.environ.get("CXX") or "g++"
    path = shutil.which(name)
    if path is None:
        raise ToolchainError(f"the emulator needs a C++ compiler and finds no {name}: install g++ (Debian and Ubuntu: apt install g++)")
    defines = subprocess.run([path, "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, text=True).stdout
    major = next((line.split()[2] for line in defines.splitlines() if line.startswith("#define __GNUC__ ")), "0")
    if "__clang__" in defines or int(major) < 11:
        raise ToolchainError(f"the emulator needs g++ 11 or newer, and {path} is something else; set CXX to a g++")
    return path


@functools.cache
def compiler_version() -> str:
    return subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


@functools.cache
def cuda_headers() -> Path:
    """The folder of NVIDIA's headers (`cuda_fp16.h`, ...), from the wheel nvidia-cuda-runtime or from a toolkit."""
    from cuda.pathfinder import find_nvidia_header_directory

    folder = find_nvidia_header_directory("cudart")
    if folder is None:
        raise ToolchainError("NVIDIA's CUDA headers are missing: pip install 'labkernels[cpu]' (or [cuda13], [cuda12])")
    return Path(folder)


def include_flags() -> list[str]:
    return [f"-I{SHIM_DIR}", f"-I{SHIM_DIR / 'device' / 'overlay'}", "-isystem", str(cuda_headers())]


def run_compiler(arguments: list[str], folder: Path | None = None) -> subprocess.CompletedProcess:
    """Run the compiler in `folder`, in the C locale, so that its messages can be parsed."""
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run([compiler(), *arguments], capture_output=True, text=True, errors="replace", env=environment, cwd=folder)


def facts(**more) -> dict:
    """What a build depends on beside the source: for cache keys."""
    return {"compiler": compiler_version(), "headers": str(cuda_headers()), "cpu": cache.host_cpu(), **more}


def shim_files() -> list[Path]:
    return sorted(p for p in SHIM_DIR.rglob("*") if p.is_file())


def runtime_library() -> Path:
    """The shared library that runs launches, built on first use."""
    key = cache.key("emulator-runtime", Source(""), files=shim_files(), **facts(sources=RUNTIME_SOURCES, flags=_RUNTIME_FLAGS))

    def make(folder: Path) -> None:
        objects = [folder / Path(name).with_suffix(".o") for name in RUNTIME_SOURCES]

        def compile_one(name: str, target: Path) -> subprocess.CompletedProcess:
            return run_compiler([*_RUNTIME_FLAGS, *include_flags(), "-c", str(SHIM_DIR / name), "-o", str(target)])

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            results = list(pool.map(compile_one, RUNTIME_SOURCES, objects))
        if not any(result.returncode for result in results):
            results = [run_compiler(["-shared", "-pthread", *map(str, objects), "-o", str(folder / "liblkruntime.so"), "-Wl,-soname,liblkruntime.so"])]
        if failed := next((result for result in results if result.returncode), None):
            raise ToolchainError(f"the emulator's runtime does not compile with {compiler_version()}:\n{failed.stderr}")
        for compiled in objects:
            compiled.unlink()

    return _built(key, make) / "liblkruntime.so"


def prelude(mode: Mode) -> Path:
    """The folder of the precompiled prelude `lk_cuda.h` for `mode`, built on first use."""
    key = cache.key("emulator-prelude", Source(""), files=shim_files(), **facts(flags=mode.flags))

    def make(folder: Path) -> None:
        (folder / "lk_prelude.h").write_text('#include "lk_cuda.h"\n')
        target = str(folder / "lk_prelude.h.gch")
        result = run_compiler([*mode.flags, *include_flags(), "-x", "c++-header", str(folder / "lk_prelude.h"), "-o", target])
        if result.returncode:
            raise ToolchainError(f"the emulator's prelude does not compile with {compiler_version()}:\n{result.stderr}")

    return _built(key, make)


_compared: set[Path] = set()  # entries that this process has found whole: a prelude has 34 MB to compare


def _built(key: str, make: Callable[[Path], None]) -> Path:
    folder = cache.root() / key
    if folder not in _compared or not folder.is_dir():
        _compared.add(cache.build(key, make))
    return folder
