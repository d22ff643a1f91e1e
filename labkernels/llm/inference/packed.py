"""`Packed`: named arrays of numbers that the CPU writes and a GPU reads, in one buffer, which one copy brings.

Notable: a copy from pinned memory waits for nothing, so that the CPU goes on while the GPU is still busy with what was launched before. Only who
writes the next numbers waits until the last ones have been read.
"""

from __future__ import annotations

import math

import numpy as np
import torch


class Packed:
    """`tensors` on the device; all zeros, at first."""

    def __init__(self, arrays: dict[str, tuple[torch.dtype, tuple[int, ...]]], device: torch.device):
        """arrays: dtype and shape of each, which begins on 16 bytes."""
        on_gpu = device.type == "cuda"
        sizes = {name: math.prod(shape) * dtype.itemsize for name, (dtype, shape) in arrays.items()}
        total = sum(-(-size // 16) * 16 for size in sizes.values())
        self._device = torch.zeros(total, dtype=torch.uint8, device=device)
        self._host = torch.zeros(total, dtype=torch.uint8, pin_memory=on_gpu)
        self._copied = torch.cuda.Event() if on_gpu else None
        self.tensors: dict[str, torch.Tensor] = {}
        self._arrays: dict[str, np.ndarray] = {}
        at = 0
        for name, (dtype, shape) in arrays.items():
            on_device, on_host = (buffer[at : at + sizes[name]].view(dtype).view(shape) for buffer in (self._device, self._host))
            self.tensors[name], self._arrays[name] = on_device, on_host.numpy()
            at += -(-sizes[name] // 16) * 16

    def arrays(self) -> dict[str, np.ndarray]:
        """The numbers as they were sent last, to be written to."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._arrays

    def send(self) -> None:
        self._device.copy_(self._host, non_blocking=True)
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(self._device.device))
