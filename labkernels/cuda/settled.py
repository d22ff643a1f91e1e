"""Has a weight rested? A kernel that is launched early may read it before the kernel before has ended, but not if that one may be writing it.

A weight's first product is launched as usual, which waits for all that was written before, and so is the next one after PyTorch has written to
the weight, which its version counter tells. Those between may be launched early (early_launch.py). What is written without PyTorch counting it, by
a kernel of one's own or through `weight.data`, is not seen here; but a kernel that says nothing is waited for until its last block has ended, and
only kernels of this package say earlier that the next may begin: when they read nothing any more that the one before them wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from labkernels.cuda.early_launch import can_launch_early

_resting: ContextVar[bool] = ContextVar("resting", default=False)  # whether weights are said to rest: on this thread, another may train
_SETTLED = "_labkernels_settled"  # an attribute of the first weight: what all looked like when a launch last waited for them


def settled(*weights: torch.Tensor) -> bool:
    """Are these as they were when this was last asked on this stream? The answer "no" obliges to launch as usual.

    Never while a CUDA graph is captured: its kernels run when it is replayed, after who knows what. Nor of tensors made in inference mode,
    which count no versions, nor where the GPU knows no early launches.
    """
    first = weights[0]
    if said_to_rest():
        return can_launch_early(first.device)
    if not can_launch_early(first.device) or any(weight.is_inference() for weight in weights) or torch.cuda.is_current_stream_capturing():
        return False
    now = (torch.cuda.current_stream(first.device).cuda_stream, *((id(weight), weight._version, weight.data_ptr()) for weight in weights))
    if getattr(first, _SETTLED, None) == now:
        return True
    setattr(first, _SETTLED, now)
    return False


@contextmanager
def resting(weights_rest: bool = True) -> Iterator[None]:
    """Inside, the caller answers for it that nobody writes a weight, as an engine can: launches are early in a CUDA graph, too."""
    before = _resting.set(weights_rest)
    try:
        yield
    finally:
        _resting.reset(before)


def said_to_rest() -> bool:
    return _resting.get()
