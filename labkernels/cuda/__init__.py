"""CUDA C++ from Python, on any machine.

A `Kernel` is CUDA C++ source and the name of one `__global__` function in it. Where its arguments' tensors live decides where it
runs: on `cuda` tensors on the GPU, on `cpu` tensors in the emulator, from the same source.
"""

from importlib import import_module

_PUBLIC = {
    "Kernel": "labkernels.cuda.kernel",
    "Source": "labkernels.cuda.source",
    "Resources": "labkernels.cuda.resources",
    "sanitize": "labkernels.cuda.emulator",
    "profile": "labkernels.cuda.emulator",
    "profiling": "labkernels.cuda.emulator",
    "sanitizing": "labkernels.cuda.emulator",
    "isolated": "labkernels.cuda.emulator",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__():
    return sorted([*globals(), *_PUBLIC])
