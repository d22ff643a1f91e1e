"""Memory nobody wrote, made visible: inside `poisoned_memory()` what `torch.empty` and its kin return is full of one marked NaN.

The mark is a quiet NaN with a payload that no arithmetic makes by itself (hardware's own NaNs have an empty or a full payload), so an
element that was never written can be told from one that was computed as NaN. A NaN computed *from* unwritten memory carries the mark
too on a CPU, and is reported as not written: that is the mistake to mend.
"""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode

_BITS = {  # dtype: integer dtype of the same size, and the mark as that integer
    torch.float64: (torch.int64, 0x7FF9_E1E1_E1E1_E1E1),
    torch.float32: (torch.int32, 0x7FE1_E1E1),
    torch.bfloat16: (torch.int16, 0x7FE1),
    torch.float16: (torch.int16, 0x7FE1),
}
_ALLOCATE = {torch.empty, torch.empty_like, torch.empty_strided, torch.empty_permuted, torch.Tensor.new_empty, torch.Tensor.new_empty_strided}


class poisoned_memory(TorchFunctionMode):
    """A context in which every uninitialised floating-point tensor that Python code allocates is filled with the mark."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in _ALLOCATE and result.dtype in _BITS:
            integer, mark = _BITS[result.dtype]
            result.detach().view(integer).fill_(mark)
        return result


def unwritten(tensor: torch.Tensor) -> torch.Tensor:
    """A mask of the elements of `tensor` that still hold the mark."""
    if tensor.dtype not in _BITS:
        return torch.zeros_like(tensor, dtype=torch.bool)
    integer, mark = _BITS[tensor.dtype]
    return tensor.detach().view(integer) == mark
