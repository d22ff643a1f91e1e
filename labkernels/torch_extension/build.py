"""The C++ extension: compiled by torch.utils.cpp_extension for the GPU at hand, kept in the cache, loaded once a process."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

from labkernels.cuda import cache
from labkernels.cuda.source import INCLUDE_DIR, Source
from labkernels.errors import CompileError, ToolchainError
from labkernels.torch_extension import operators
from labkernels.torch_extension.units import CSRC, sources, units

NAME = "labkernels_extension"
TIMEOUT_S = 300.0  # for another process that builds the same
HINT = "without it the kernels are compiled by NVRTC and launched from Python, as before"
# torch takes half precision's operators and conversions away, some kernels use them; and names that only device code has are no error.
NVCC_FLAGS = ["-O3", *(f"-U__CUDA_NO_{name}__" for name in ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_CONVERSIONS", "HALF2_OPERATORS"))]
NVCC_FLAGS += ["-Xcompiler=-fpermissive", "-Xcompiler=-w"]


def load(verbose: bool = False) -> None:
    """See labkernels.torch_extension.load."""
    if operators.backend() == "cpp":
        return
    if not torch.cuda.is_available():
        raise ToolchainError("the C++ extension launches kernels on an NVIDIA GPU, and torch sees none here; CPU tensors run in the emulator")
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        raise ToolchainError(f"the C++ extension is for GPUs of compute capability 8.0 and more, {torch.cuda.get_device_name()} has {major}.{minor}")
    library = ctypes.CDLL(str(build(10 * major + minor, verbose)))
    operators.give_way()
    library.labkernels_register()


def build(arch: int, verbose: bool = False) -> Path:
    """The extension's library for GPUs of architecture `arch`, such as 80 or 90, built now if it is not in the cache."""
    toolkit = find_toolkit()
    if shutil.which("ninja", path=_path()) is None:
        raise ToolchainError(f"the C++ extension is built by ninja, which is missing: pip install ninja; {HINT}")
    facts = {"torch": torch.__version__, "nvcc": nvcc_version(toolkit), "arch": arch, "flags": NVCC_FLAGS, "units": units(arch)}
    key = cache.key("torch_extension", Source("", "units"), files=sources(), **facts)
    folder = cache.build(key, lambda folder: _compile_into(folder, arch, toolkit, verbose), timeout_s=TIMEOUT_S)
    return folder / f"{NAME}.so"


def find_toolkit() -> Path:
    """The folder of a CUDA toolkit: bin/nvcc and include/cuda_runtime.h. ToolchainError where there is none."""
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    if nvcc := shutil.which("nvcc"):
        candidates.append(Path(nvcc).resolve().parents[1])
    candidates += ["/usr/local/cuda", *sorted(Path("/usr/local").glob("cuda-*"), reverse=True), "/opt/cuda"]
    for folder in map(Path, filter(None, candidates)):
        if (folder / "bin" / "nvcc").exists() and (folder / "include" / "cuda_runtime.h").exists():
            return folder
    raise ToolchainError(
        "the C++ extension is compiled by nvcc, which is missing. Install NVIDIA's CUDA toolkit of the version of this torch "
        f"({torch.version.cuda or 'CPU only'}), or set CUDA_HOME to where it is; {HINT}"
    )


@functools.cache
def nvcc_version(toolkit: Path) -> str:
    """Like `13.0.88`. ToolchainError if nvcc does not run."""
    try:
        said = subprocess.run([toolkit / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ToolchainError(f"{toolkit}/bin/nvcc does not run: {error}") from error
    return match[1] if (match := re.search(r"V([\d.]+)", said)) else said.strip()


def arch_flag(arch: int) -> str:
    """nvcc's flag for code of this architecture alone; sm_90 has instructions that only sm_90a names."""
    name = f"{arch}a" if arch >= 90 else str(arch)
    return f"-gencode=arch=compute_{name},code=sm_{name}"


def _compile_into(folder: Path, arch: int, toolkit: Path, verbose: bool) -> None:
    from torch.utils import cpp_extension

    work = folder / "build"
    work.mkdir()
    for name, text in units(arch).items():
        (work / f"{name}.cu").write_text(text)
    files = [CSRC / "operators.cpp", *sorted(work.glob("*.cu"))]
    libraries = [path for path in (toolkit / "lib64", toolkit / "targets" / "x86_64-linux" / "lib", toolkit / "lib") if path.is_dir()]
    try:
        with _home_of_cpp_extension(toolkit):
            cpp_extension.load(
                NAME,
                [str(file) for file in files],
                extra_cflags=["-O2"],
                extra_cuda_cflags=[*NVCC_FLAGS, arch_flag(arch)],
                extra_ldflags=[f"-L{library}" for library in libraries],
                extra_include_paths=[str(CSRC), str(INCLUDE_DIR)],
                build_directory=str(work),
                with_cuda=True,
                is_python_module=False,
                verbose=verbose,
            )
    except (RuntimeError, OSError) as error:
        raise CompileError(f"the C++ extension does not build:\n{error}", log=str(error)) from error
    built = next(work.glob("*.so"))  # not always NAME.so: a second build in one process has a number in its name
    shutil.move(built, folder / f"{NAME}.so")
    shutil.rmtree(work)


@contextmanager
def _home_of_cpp_extension(toolkit: Path):
    """cpp_extension decides where CUDA is when it is imported; for the time of the build it is `toolkit`, and ninja is found."""
    from torch.utils import cpp_extension

    before, path = cpp_extension.CUDA_HOME, os.environ.get("PATH")
    cpp_extension.CUDA_HOME, os.environ["PATH"] = str(toolkit), _path()
    try:
        yield
    finally:
        cpp_extension.CUDA_HOME = before
        os.environ["PATH"] = path or ""


def _path() -> str:
    """Where programs are looked for; pip puts ninja beside Python, which need not be among the folders of PATH."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
