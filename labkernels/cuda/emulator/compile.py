"""A CUDA C++ source made into host code: g++ compiles it behind the shim, and the result is a shared library."""

from __future__ import annotations

import ctypes
import functools
import re
from pathlib import Path

from labkernels.cuda import cache
from labkernels.cuda.compile import base_name
from labkernels.cuda.diagnostics import Diagnostic, compile_error, parse_gcc
from labkernels.cuda.emulator import toolchain
from labkernels.cuda.signature import demangle
from labkernels.cuda.source import Source, without_comments

# What host C++ cannot be made to mean, and what to say about it.
_UNSUPPORTED = [
    (r"\b(?:asm|__asm__|__asm)\b\s*(?:volatile|__volatile__)?\s*\(",
     "inline PTX cannot run in the emulator: use a function of labkernels/cuda/include, or guard it with #ifndef LK_EMULATOR"),
    (r"<<<", "a kernel cannot launch another one in the emulator (dynamic parallelism)"),
    (r"\b(?:tex1D|tex2D|tex3D|surf2Dread|surf2Dwrite|cudaTextureObject_t)\b", "textures and surfaces are not supported by the emulator"),
]
_FEW_LIBRARIES = ("-nostdlib", "-lm", "-lc", "-lgcc")  # all that nearly every kernel needs, linked in half the time
_DYNAMIC_SHARED = re.compile(r"\bextern\s+([^;{}()]*?(?:\([^()]*\)[^;{}()]*?)?)__shared__\s+([^;{}]*?)\b(\w+)\s*\[\s*\]\s*;")
_ALIGNMENT = re.compile(r"(?:__align__|alignas|__attribute__)\s*\((?:[^()]|\([^()]*\)|\(\([^()]*\([^()]*\)\)\))*\)")


class EmulatedKernel:
    """A kernel's shared library, loaded: its entry, its parameters, its place in memory."""

    def __init__(self, path: Path, name: str):
        load_runtime()
        self.path = path
        self.name = name
        self.library = ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)
        self.library.lk_signature.restype = ctypes.c_char_p
        self.library.lk_parameter_sizes.restype = ctypes.POINTER(ctypes.c_uint)
        count = self.library.lk_parameter_count()
        self.parameter_sizes = tuple(self.library.lk_parameter_sizes()[:count])
        self.signature = demangle(self.library.lk_signature())
        self.library.lk_cluster.restype = ctypes.POINTER(ctypes.c_uint)
        declared = self.library.lk_cluster()
        self.cluster = tuple(max(size, 1) for size in declared[:3]) if declared else None  # of __cluster_dims__

    def address(self, symbol: str) -> int:
        return ctypes.cast(getattr(self.library, symbol), ctypes.c_void_p).value

    def launch(self, grid, block, values, shared_mem=0, time_limit_s=None) -> None:
        """Run the kernel in this process on all cores; see `launch.run`."""
        from labkernels.cuda.emulator.launch import run

        run(self, grid, block, values, shared_mem, time_limit_s=time_limit_s)


def build(source: Source, name: str, mode: toolchain.Mode = toolchain.RELEASE) -> EmulatedKernel:
    """The kernel `name` of `source` as a loaded library, compiled unless it is in the cache. Raises CompileError, ToolchainError."""
    return load(library(source, name, mode), name)


def library(source: Source, name: str, mode: toolchain.Mode = toolchain.RELEASE) -> Path:
    """The path of the kernel's library, compiled for speed or to be watched."""
    key = cache.key("emulator", source, files=toolchain.shim_files(), name=name, **toolchain.facts(flags=mode.flags))
    found = cache.lookup(key)
    if found is None:
        _refuse_unsupported(source, name)
        found = cache.build(key, lambda folder: _compile(source, name, mode, folder))
    return found / "kernel.so"


@functools.cache
def load(path: Path, name: str) -> EmulatedKernel:
    """The library at `path`, loaded into this process."""
    return EmulatedKernel(path, name)


@functools.cache
def load_runtime() -> ctypes.CDLL:
    """The runtime library, loaded once into this process, before any kernel's."""
    return ctypes.CDLL(str(toolchain.runtime_library()), mode=ctypes.RTLD_GLOBAL)


def _refuse_unsupported(source: Source, name: str) -> None:
    text = without_comments(_without_guarded(source.text))
    for pattern, message in _UNSUPPORTED:
        if match := re.search(pattern, text):
            line = source.first_line + text.count("\n", 0, match.start())
            column = match.start() - text.rfind("\n", 0, match.start())
            raise compile_error(name, source, [Diagnostic(source.filename, line, column, "error", message)], message)


def _without_guarded(text: str) -> str:
    """The text with the bodies of `#ifndef LK_EMULATOR` blanked, line numbers kept."""
    guarded = re.compile(r"^[ \t]*#[ \t]*ifndef[ \t]+LK_EMULATOR\b.*?^[ \t]*#[ \t]*(?:else|endif)\b", re.MULTILINE | re.DOTALL)
    return guarded.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)


def host_text(source: Source) -> str:
    """The source as host C++: unchanged but for `extern __shared__ T name[]`, which becomes a pointer to the block's memory."""
    plain = without_comments(source.text)
    pieces, end = [f'#line {source.first_line} "{_escape(source.filename)}"\n'], 0
    for match in _DYNAMIC_SHARED.finditer(plain):
        element = " ".join(_ALIGNMENT.sub(" ", f"{match.group(1)} {match.group(2)}").split())
        name, memory = match.group(3), "lk::dynamic_shared()"
        line_breaks = match.group().count("\n")
        if _inside_function(plain[: match.start()]):
            replacement = f"{element}* const {name} = static_cast<{element}*>({memory});" + "\n" * line_breaks
        else:                                       # at namespace scope a macro stands for it, so that every thread asks anew
            line = source.first_line + plain.count("\n", 0, match.end())
            replacement = f'\n#define {name} (static_cast<{element}*>({memory}))\n#line {line} "{_escape(source.filename)}"\n'
        pieces += [source.text[end : match.start()], replacement]
        end = match.end()
    return "".join([*pieces, source.text[end:]])


def _inside_function(text: str) -> bool:
    """Whether the end of `text` (without comments) lies in braces other than those of a namespace or `extern "C"`."""
    openings: list[bool] = []
    for match in re.finditer(r"[{}]", text):
        if match.group() == "}":
            if openings:
                openings.pop()
            continue
        before = re.split(r"[;{}]", text[: match.start()])[-1].strip()
        openings.append(not re.search(r"\bnamespace(\s+[\w:]+)?$|^extern\b[^()]*$", before))
    return any(openings)


def _escape(filename: str) -> str:
    return filename.replace("\\", "\\\\").replace('"', '\\"')


def _compile(source: Source, name: str, mode: toolchain.Mode, folder: Path) -> None:
    prelude = toolchain.prelude(mode)
    includes = [f"-I{path}" for path in source.include_dirs]
    defines = "".join(f"#define {key} {value}\n" for key, value in source.defines)    # behind the prelude, whose names -DN=4 would replace
    cluster = source.cluster(base_name(name))
    declared = f'#line 1 "lk_cluster"\nstatic constexpr unsigned lk_cluster_shape[3] = {{{cluster}}};\n#define LK_CLUSTER_DECLARED\n' if cluster else ""
    text = f'{defines}{host_text(source)}\n{declared}#line 1 "lk_entry"\n#define LK_KERNEL {name}\n#include "lk_entry.h"\n'
    (folder / "kernel.cpp").write_text(text, encoding="utf-8")
    place = f"-fdebug-prefix-map={folder}=."        # so that debug information names the reader's file, not the cache's folder
    command = [*mode.flags, place, "-include", str(prelude / "lk_prelude.h"), *includes, *toolchain.include_flags()]
    compiled = toolchain.run_compiler([*command, "-c", "kernel.cpp", "-o", "kernel.o"], folder)
    if compiled.returncode:
        raise compile_error(name, source, _readers_diagnostics(parse_gcc(compiled.stderr), source, name), compiled.stderr)
    runtime = toolchain.runtime_library()
    link = ["-shared", str(folder / "kernel.o"), str(runtime), "-o", str(folder / "kernel.so"), "-Wl,-z,defs", f"-Wl,-rpath,{runtime.parent}"]
    linked = toolchain.run_compiler([*link, *_FEW_LIBRARIES])
    if linked.returncode:
        linked = toolchain.run_compiler(link)  # it needs more: a destructor at a thread's end, for one
    if linked.returncode:
        raise compile_error(name, source, parse_gcc(linked.stderr), linked.stderr)
    (folder / "kernel.o").unlink()


def _readers_diagnostics(diagnostics: list[Diagnostic], source: Source, name: str) -> list[Diagnostic]:
    """The messages about the reader's lines; those about the lines that we add become one about the kernel's name."""
    if any(d.file == "lk_cluster" and d.severity == "error" for d in diagnostics):
        text = f"{name}: the emulator must know __cluster_dims__ without the template's arguments: give the launch cluster= instead"
        return [Diagnostic(source.filename, None, None, "error", text)]
    theirs = [d for d in diagnostics if d.file != "lk_entry" and not (d.file and str(toolchain.SHIM_DIR) in d.file)]
    ours = [d for d in diagnostics if d.file == "lk_entry" and d.severity == "error"]
    if not any(d.severity == "error" for d in theirs) and ours:
        known = ", ".join(source.kernels()) or "none"
        text = f"the source has no kernel that can be launched as {name} (it has: {known}): {ours[0].text}"
        return [Diagnostic(source.filename, None, None, "error", text)]
    return theirs
