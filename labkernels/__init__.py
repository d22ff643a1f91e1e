"""A workbook of GPU kernels: from a naive loop to flash attention, on any machine. `import labkernels as lk`.

    lk.Kernel, lk.sanitize, lk.profile      CUDA C++ from Python, on the GPU or in the emulator
    lk.check, lk.bench, lk.draw             judging, measuring and picturing what you wrote
    lk.ops["attention"].variants            every operation and its ladder of implementations
    lk.functional.attention(q, k, v)        the operations themselves, by the fastest variant that accepts the inputs
    lk.explain("attention", q, k, v)        which variant that is, and why no other
    lk.nn.FlashAttention(embed_dim, heads)  layers made of them
    lk.llm.Transformer(config)              a language model made of them: training, generating

Names are loaded when they are first used, so that importing the package starts no compiler and looks for no GPU.
"""

from importlib import import_module

_HOME = {
    "ops": "labkernels.operation",
    "explain": "labkernels.explain",
    "Kernel": "labkernels.cuda",
    "sanitize": "labkernels.cuda",
    "profile": "labkernels.cuda",
    "check": "labkernels.lab.check",
    "check_against": "labkernels.lab.check_against",
    "check_counters": "labkernels.lab.check_counters",
    "CheckFailed": "labkernels.lab.failure",
    "bench": "labkernels.lab.bench",
    "check_prediction": "labkernels.classroom.predictions",
    "load_ipython_extension": "labkernels.lab.magics",
}
_MODULES = {
    "functional": "labkernels.functional",
    "nn": "labkernels.nn",
    "llm": "labkernels.llm",
    "torch_extension": "labkernels.torch_extension",
    "draw": "labkernels.lab.draw",
}

__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str):
    if name in _HOME:
        found = getattr(import_module(_HOME[name]), name)
    elif name in _MODULES:
        found = import_module(_MODULES[name])
    else:
        raise AttributeError(f"module 'labkernels' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
