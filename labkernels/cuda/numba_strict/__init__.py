"""What Numba's simulator lacks: indices that must lie inside their array, operations of a warp, and an end to every launch.

`install()` gives it to the simulator, once:

- Every index of a device, shared or local array is checked, and -1 is outside: IndexError names array, index, thread and block.
- `shfl_sync` and its kin, votes, matches and `syncwarp` work among the 32 threads of a warp.
- Shared and local arrays begin as NaN (integers as their smallest number), as on a GPU they begin as anything.
- Threads that wait for each other for ever raise RuntimeError; a launch that is interrupted, or fails, leaves no thread behind.
"""

from numba.cuda.simulator import kernel, kernelapi

from labkernels.cuda.numba_strict import arrays, warps
from labkernels.cuda.numba_strict.blocks import Block


def install() -> None:
    """Make the simulator strict; calling it again changes nothing."""
    kernel.BlockManager = Block
    kernelapi.FakeCUDALocal.array = arrays.local_array
    kernelapi.FakeCUDAShared.array = arrays.shared_array
    for operation in warps.OPERATIONS:
        setattr(kernelapi.FakeCUDAModule, operation.__name__, staticmethod(operation))
