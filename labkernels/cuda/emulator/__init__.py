"""CUDA C++ on a CPU: the same source, compiled by g++ behind a shim of headers, each CUDA thread a fiber.

    library = build(source, "softmax")              # compiled once, kept in the cache
    library.launch(grid, block, values, shared_mem) # on all cores of this machine
    report = sanitize(kernel, grid, block, args)    # in a child process, every access watched
    counters = profile(kernel, grid, block, args)   # what its warps ask of memory, by source line

README.md beside this file says how it works, how fast it is, and what it does not support.
"""

from importlib import import_module

_PUBLIC = {
    "EmulatedKernel": "compile",
    "build": "compile",
    "compiled_as": "modes",
    "set_threads": "launch",
    "isolated": "modes",
    "run": "modes",
    "sanitize": "sanitizer",
    "sanitizing": "modes",
    "tracing": "modes",
    "profile": "profiler",
    "profiling": "modes",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    # Imported when first used: the child process, which needs no torch, starts ten times as fast.
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__():
    return sorted([*globals(), *_PUBLIC])
