"""Programmatic dependent launch of kernels that read a weight: they begin before the kernel launched before them has ended.

A stream of GEMVs at 5 us each loses 1 to 3 of them to the end of one kernel and the start of the next. Launched early, a kernel's blocks run
beside the last one's or take their places, ask for their weights, and wait (grid_dependency_wait) only before they touch x and y.

That is sound as long as no kernel that still runs writes the weight. So a weight's first product is launched as usual, which waits for all that
was launched before, and again after PyTorch has written to its tensors, which their version counters tell. A kernel that says nothing is
waited for until its last block has ended; ours, which say that the next may begin, write no weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from labkernels.cuda.kernel import Kernel
from labkernels.cuda.settled import said_to_rest
from labkernels.quant.formats import QuantizedWeight

_SETTLED = "labkernels_settled"  # an attribute of a weight's packed tensor: the versions of all when a launch waited for them


def launch(kernel: Kernel, weight: QuantizedWeight, grid: tuple[int, int], block: int, args: Sequence, shared_mem: int, cluster=None) -> None:
    """As kernel(grid, block, args, shared_mem, cluster); early where the weight has rested since its last launch.

    Never while a CUDA graph is captured: its kernels run when it is replayed, after who knows what.
    """
    if said_to_rest():
        return kernel(grid, block, args, shared_mem, cluster, early=True)
    versions = _versions(weight)
    on_gpu = weight.packed.is_cuda
    if versions is None or not on_gpu or torch.cuda.is_current_stream_capturing():
        return kernel(grid, block, args, shared_mem, cluster)
    rested = getattr(weight.packed, _SETTLED, None) == versions
    kernel(grid, block, args, shared_mem, cluster, early=rested)
    if not rested:
        setattr(weight.packed, _SETTLED, versions)


def _versions(weight: QuantizedWeight) -> tuple | None:
    """What PyTorch counts up when it writes to a tensor, and where the tensors lie; None of tensors made in inference mode, which count nothing."""
    tensors = [tensor for tensor in (weight.packed, weight.scales, weight.codebook) if tensor is not None]
    if any(tensor.is_inference() for tensor in tensors):
        return None
    stream = torch.cuda.current_stream(weight.packed.device).cuda_stream if weight.packed.is_cuda else 0
    return (stream, *((tensor._version, tensor.data_ptr()) for tensor in tensors))
