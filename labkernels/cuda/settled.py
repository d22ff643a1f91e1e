"""Has a weight rested? A kernel that is launched early may read it before the kernel before has ended, but not if that one may be writing it.

A weight's first launch is as usual, which waits until all that was launched before has ended and its writes are seen; and so is the next
one after the weight was written to, which its version counter tells. Those between may be early (early_launch.py), even after kernels that
say soon that the next may begin and then write weights, as adamw.cu does: who writes in place counts it up, as PyTorch does itself, and
with `wrote` so do this package's launchers. Not seen is what is written and not counted: by a kernel of one's own (call `wrote`), by
PyTorch's fused optimisers, through `weight.data`. A kernel that says nothing is at least waited for until its last block has ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from labkernels.cuda.early_launch import can_launch_early
from labkernels.cuda.kernel import Kernel
from labkernels.cuda.lasting import capturing

_resting: ContextVar[bool] = ContextVar("resting", default=False)  # whether weights are said to rest: on this thread, another may train
_SETTLED = "_labkernels_settled"  # an attribute of a weight: the stream, the version and the place of which a launch has waited for all before


def settled(*weights: torch.Tensor) -> bool:
    """Are these as they were when this was last asked on this stream? The answer "no" obliges to launch as usual.

    Never while a CUDA graph is captured: its kernels run when it is replayed, after who knows what. Nor of tensors made in inference mode,
    which count no versions, nor where the GPU knows no early launches.
    """
    device = weights[0].device
    if not can_launch_early(device):
        return False
    if said_to_rest():
        return True
    if capturing(device):
        return False
    stream, rested = torch.cuda.current_stream(device).cuda_stream, True
    for weight in weights:
        if weight.is_inference():
            rested = False
            continue
        now = stream, weight._version, weight.data_ptr()
        if getattr(weight, _SETTLED, None) != now:
            setattr(weight, _SETTLED, now)
            rested = False
    return rested


def launch_beside(kernel: Kernel, weights: Sequence[torch.Tensor], grid, block, args: Sequence, shared_mem: int = 0, cluster=None) -> None:
    """kernel(grid, block, args, shared_mem, cluster); early where `weights`, which it reads before it waits, are settled."""
    early = settled(*weights)
    try:
        kernel(grid, block, args, shared_mem, cluster, early)
    except BaseException:  # then nothing has waited for them
        for weight in weights:
            setattr(weight, _SETTLED, None)
        raise


def wrote(*tensors: torch.Tensor | None) -> None:
    """A kernel that PyTorch knows nothing of has been launched that writes to these: count up their versions, by which autograd notices that what it
    saved is gone, and `settled` that a weight is new. For torch.compile the operators' schemas say it."""
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version([tensor for tensor in tensors if tensor is not None])


@contextmanager
def resting(weights_rest: bool = True) -> Iterator[None]:
    """Inside, the caller answers for it that nobody writes a weight, as an engine can, and that a launch as usual stands between the last one
    who did and the first of these: that of a CUDA graph, or of any kernel of PyTorch's. Then launches are early in a graph, too."""
    before = _resting.set(weights_rest)
    try:
        yield
    finally:
        _resting.reset(before)


def said_to_rest() -> bool:
    return _resting.get()
