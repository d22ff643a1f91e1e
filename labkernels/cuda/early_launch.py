"""Programmatic dependent launch (Hopper and newer): a kernel begins before the kernel launched before it on the stream has ended.

`kernel(grid, block, args, early=True)` is such a launch, or one like any other where the GPU does not know them. Whether a kernel that reads weights
before it waits may be launched so is for settled.py to say.
"""

from __future__ import annotations

import functools

import torch


def can_launch_early(device: torch.device) -> bool:
    """Is it a GPU that knows such launches?"""
    return device.type == "cuda" and _is_hopper(device)


@functools.cache
def _is_hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)  # or newer
