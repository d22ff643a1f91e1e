"""The operations as torch operators: `torch.ops.labkernels.attention`, `.attention_backward`, `.matmul`.

    import labkernels.torch_extension               # defines the operators; `import labkernels.functional` does too
    out, lse = torch.ops.labkernels.attention(q, k, v, True)

They have fake kernels, gradients and autocast, so that `torch.compile(fullgraph=True)`, CUDA graphs and `torch.library.opcheck` take them.
On CPU tensors they run in the emulator. On CUDA tensors their kernels are launched from Python, compiled by NVRTC, until

    labkernels.torch_extension.load()               # compiles the same .cu files with nvcc, once, and launches from C++ from then on

which takes the host a few microseconds a call in place of tens. Where nvcc is missing `load` says so, and everything else works without.
"""

from labkernels.torch_extension import autocast as _autocast  # noqa: F401  importing registers
from labkernels.torch_extension import ffn as _ffn  # noqa: F401
from labkernels.torch_extension import gradients as _gradients  # noqa: F401
from labkernels.torch_extension import kvcache as _kvcache  # noqa: F401
from labkernels.torch_extension import norm as _norm  # noqa: F401
from labkernels.torch_extension import quant as _quant  # noqa: F401
from labkernels.torch_extension import loss as _loss  # noqa: F401
from labkernels.torch_extension import sampling as _sampling  # noqa: F401
from labkernels.torch_extension import small as _small  # noqa: F401
from labkernels.torch_extension.operators import backend
from labkernels.torch_extension.routing import goes_through_torch

__all__ = ["backend", "goes_through_torch", "load"]


def load(verbose: bool = False) -> None:
    """Build the C++ extension for this machine's GPU, if it is not in the cache, and have it launch the kernels from now on.

    Raises ToolchainError that names what is missing (a GPU, nvcc, ninja, a C++ compiler) and CompileError with what nvcc said.
    """
    from labkernels.torch_extension.build import load

    load(verbose)
