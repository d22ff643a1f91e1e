"""When a public function calls the torch operator, and when the kernels' launcher itself."""

from __future__ import annotations

import torch

from labkernels.torch_extension.operators import backend


def goes_through_torch(*tensors: torch.Tensor | None) -> bool:
    """Is there something that only the torch operator does: gradients, torch.compile, torch.vmap, autocast, launches from C++?"""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    given = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return True
    if not given:
        return False
    kind = given[0].device.type
    return torch.is_autocast_enabled(kind) or kind == "cuda" and backend() == "cpp"
