"""Numbers that a GPU is still working on, to be read later without holding it up."""

from __future__ import annotations

import torch


class Later:
    """Numbers on a GPU, copied to the host behind what is launched; `read()` waits for them alone."""

    def __init__(self, numbers: torch.Tensor):
        self._ready, self._source = None, numbers
        if numbers.is_cuda:
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()
        else:
            self._numbers = numbers

    def tensor(self) -> torch.Tensor:
        """The numbers where they were made."""
        return self._source

    def read(self) -> list[float]:
        if self._ready is not None:
            self._ready.synchronize()
        return self._numbers.tolist()
