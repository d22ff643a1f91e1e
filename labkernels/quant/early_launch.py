"""Early launches (programmatic dependent launch) of kernels that read a quantised weight: they begin before the kernel launched before them has ended.

A stream of GEMVs at 5 us each loses 1 to 3 of them to the end of one kernel and the start of the next. Launched early, a kernel's blocks run
beside the last one's or take their places, ask for their weights, and wait (grid_dependency_wait) only before they touch x and y.

That is sound as long as no kernel that still runs writes the weight: cuda/settled.py says when.
"""

from __future__ import annotations

from collections.abc import Sequence

from labkernels.cuda.kernel import Kernel
from labkernels.cuda.settled import launch_beside
from labkernels.quant.formats import QuantizedWeight


def launch(kernel: Kernel, weight: QuantizedWeight, grid: tuple[int, int], block: int, args: Sequence, shared_mem: int, cluster=None) -> None:
    """As kernel(grid, block, args, shared_mem, cluster); early where the weight has rested since its last launch."""
    tensors = [tensor for tensor in (weight.packed, weight.scales, weight.codebook) if tensor is not None]
    launch_beside(kernel, tensors, grid, block, args, shared_mem, cluster)
