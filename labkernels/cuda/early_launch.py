"""Programmatic dependent launch (Hopper and newer): a kernel begins before the kernel launched before it on the stream has ended.

`kernel(grid, block, args, early=True)` is such a launch; here stand the question whether a GPU knows them, and the same by another name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from labkernels.cuda.kernel import Kernel

Shape = tuple[int, int, int]


def can_launch_early(device: torch.device) -> bool:
    """Is it a GPU that knows such launches?"""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def launch_early(kernel: Kernel, device: torch.device, grid: Shape, block: Shape, args: Sequence, shared_mem: int = 0, cluster: Shape | None = None) -> None:
    """kernel(grid, block, args, shared_mem, cluster, early=True); `device` is that of `args`. Raises ArgumentError, LaunchError."""
    kernel(grid, block, args, shared_mem, cluster, early=True)
