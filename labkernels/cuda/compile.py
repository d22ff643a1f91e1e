"""CUDA C++ to machine code for a GPU, with NVRTC, on machines with and without one.

One compilation gives a `Cubin`: the code, the kernel's symbol and signature, and ptxas's log with its registers and spills. It is
kept in the cache, where launches, signatures and resources find it.
"""

from __future__ import annotations

import functools
import io
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from labkernels.cuda import cache, diagnostics
from labkernels.cuda.signature import Parameter, demangle, parse_signature
from labkernels.cuda.source import Source
from labkernels.errors import ArgumentError, CompileError, ToolchainError

DEFAULT_ARCH = "sm_90a"

# Macros of <math.h> that nvcc and the emulator know without being asked, and NVRTC does not.
_MACROS = """\
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
"""

# A function template that takes a kernel's type and its parameters' sizes: the compiler's mangled name for it says both.
_SIGNATURE = """\
template <unsigned... bytes> struct lk_sizes {};
template <class F> struct lk_sizes_of;
template <class... P> struct lk_sizes_of<void(P...)> { using type = lk_sizes<sizeof(P)...>; };
template <class F, class S = typename lk_sizes_of<F>::type> __global__ void lk_signature(F*) {}
"""


@dataclass(frozen=True)
class Cubin:
    """One kernel, compiled. `path` is the cubin file, `symbol` the kernel's name in it, `arch` like `sm_90a`.

    `log` is ptxas's report of registers, stack, spills and shared memory.
    """

    path: Path
    symbol: str
    signature: tuple[Parameter, ...]
    arch: str
    log: str


def compile_kernel(source: Source, name: str, arch: str = DEFAULT_ARCH) -> Cubin:
    """Compile the kernel `name` (which may name a template's instantiation) for `arch`, or find it in the cache.

    Raises CompileError with the compiler's messages; ArgumentError for an architecture that NVRTC does not know; ToolchainError
    where NVRTC or CUDA's headers are missing.
    """
    arch = full_arch(arch)
    headers = cuda_include_dirs()
    compiler = [nvrtc_version(), _headers_version(headers)]
    key = cache.key("nvrtc", source, name=name, arch=arch, compiler=compiler, options=_options(), prelude=_SIGNATURE + _MACROS)
    folder = cache.build(key, lambda folder: _compile_into(folder, source, name, arch, headers))
    facts = json.loads((folder / "kernel.json").read_text())
    names = source.kernels().get(base_name(name))
    return Cubin(folder / "kernel.cubin", facts["symbol"], parse_signature(facts["signature"], names), arch, facts["log"])


def plain_text(source: Source) -> str:
    """What NVRTC compiles: the source after its definitions, which are not given as -D: those would reach _SIGNATURE's names too."""
    return _MACROS + "".join(f"#define {key} {value}\n" for key, value in source.defines) + source.with_line_directive()


def base_name(name: str) -> str:
    """The name without namespace and template arguments: `f` for `ns::f<float, 4>`."""
    return name.split("<")[0].split("::")[-1].strip()


def full_arch(arch: str) -> str:
    """`sm_NN` with the suffix `a` where the architecture has one: with it, wgmma and its like compile. `sm_90` gives `sm_90a`."""
    match = re.fullmatch(r"sm_(\d+)a?", str(arch))
    if not match:
        raise ArgumentError(f"arch is written like 'sm_90', got {arch!r}")
    number = int(match.group(1))
    known = supported_archs()
    if number not in known:
        listed = ", ".join(f"sm_{n}" for n in known)
        raise ArgumentError(f"NVRTC {nvrtc_version()} cannot compile for sm_{number}; it can for {listed}")
    return f"sm_{number}a" if number >= 90 else f"sm_{number}"


@functools.cache
def nvrtc_version() -> str:
    """Major and minor version of NVRTC on this machine, like `13.0`. Raises ToolchainError without NVRTC."""
    _, major, minor = _nvrtc().nvrtcVersion()
    return f"{major}.{minor}"


@functools.cache
def supported_archs() -> list[int]:
    """The architectures that this NVRTC compiles for: 75, 80, ..."""
    return list(_nvrtc().nvrtcGetSupportedArchs()[1])


@functools.cache
def cuda_include_dirs() -> tuple[str, ...]:
    """The folders of CUDA's headers and of CCCL's, from Python packages or an installed toolkit. Raises ToolchainError."""
    from cuda.pathfinder import find_nvidia_header_directory

    runtime = find_nvidia_header_directory("cudart")
    if runtime is None:
        raise ToolchainError("CUDA's headers (cuda_runtime.h) are missing; `pip install 'cuda-toolkit[cudart,cccl]'` brings them")
    cccl = find_nvidia_header_directory("cccl")
    found = [d for d in (runtime, cccl) if d]
    if not any(Path(d, "crt", "mma.h").exists() for d in found):  # <mma.h> needs it; not every build of the runtime's wheel has it
        found += [d for d in _toolkits() if Path(d, "crt", "mma.h").exists()][:1]
    return tuple(dict.fromkeys(found))


def _toolkits() -> list[str]:
    """The include folders of toolkits installed on this machine, best first."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    if nvcc := shutil.which("nvcc"):
        homes.insert(0, str(Path(nvcc).resolve().parent.parent))
    return [str(Path(home, "include")) for home in homes if home]


def _options() -> dict:
    options = {"std": "c++17", "lineinfo": True, "ptxas_options": ["-v"]}
    if _nvrtc().nvrtcVersion()[1:] >= (12, 9):
        options["no_cache"] = True  # NVRTC has a cache of its own since then, and what it remembers comes without ptxas's report
    return options


def _nvrtc():
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:  # RuntimeError: the package is there, the library is not
        raise ToolchainError(f"NVIDIA's compiler NVRTC is missing ({error}); `pip install 'cuda-toolkit[nvrtc]'` brings it") from error
    return nvrtc


@functools.cache
def _headers_version(folders: tuple[str, ...]) -> str:
    text = Path(folders[0], "cuda_runtime_api.h").read_text(errors="replace")
    version = re.search(r"#define\s+CUDART_VERSION\s+(\d+)", text)
    return f"{':'.join(folders)} {version.group(1) if version else ''}"


def _compile_into(folder: Path, source: Source, name: str, arch: str, headers: tuple[str, ...]) -> None:
    wanted = f"lk_signature<decltype({name})>"
    code, log = _run_nvrtc(source, arch, headers, (name, wanted))
    if code is None:
        raise _compile_error(source, name, log)
    (folder / "kernel.cubin").write_bytes(code.code)
    facts = {"symbol": code.symbol_mapping[name].decode(), "signature": demangle(code.symbol_mapping[wanted]), "log": log}
    (folder / "kernel.json").write_text(json.dumps(facts))


def _run_nvrtc(source: Source, arch: str, headers: tuple[str, ...], names: tuple[str, ...]):
    """The compiled code, None if there are errors, and NVRTC's log.

    A function of its own, so that no traceback keeps cuda.core's Program alive: collected late it prints an error of its own.
    """
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(arch=arch, name="kernel.cu", include_path=[*source.include_dirs, *headers], **_options())
    log = io.StringIO()
    try:
        program = Program(_SIGNATURE + plain_text(source), "c++", options)
        code = program.compile("cubin", name_expressions=names, logs=log)
    except Exception as error:
        if "NVRTC_ERROR" not in str(error):
            raise
        return None, str(error).partition("compilation log:")[2] or str(error)
    return code, log.getvalue().replace("\0", "")


def _compile_error(source: Source, name: str, log: str) -> CompileError:
    found = diagnostics.parse_nvrtc(log)
    own = [d for d in found if d.file != "__nv_name_map"]
    if any(d.severity == "error" for d in own) or not found:
        return diagnostics.compile_error(name, source, own, log)
    return CompileError(_about_name(source, name, found), found, log)


def _about_name(source: Source, name: str, found: list[diagnostics.Diagnostic]) -> str:
    """What is wrong when the source compiles, but not the name of the kernel in it."""
    kernels = source.kernels()
    if base_name(name) not in kernels:
        listed = ", ".join(kernels) or "none"
        return f"{source.filename} has no __global__ function {base_name(name)}; it has: {listed}"
    if "<" not in name and any("function template" in d.text for d in found):
        return f"{name} is a template; name one instantiation of it, such as {name}<float>"
    return f"{name} names no kernel in {source.filename}: {found[0].text}"
