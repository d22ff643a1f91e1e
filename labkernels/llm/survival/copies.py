"""Nested state copied to the CPU while a GPU trains on: nobody waits for the copies but who reads them.

Notable: a copy into ordinary memory goes through the driver's own buffer, some 5 GB/s, and holds up the thread that trains. Copies into page-locked memory
are queued behind what the GPU has to do, 50 GB/s, and the next step behind them. Locking pages takes seconds, so the memory is kept from copy to copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Copies:
    """Page-locked memory for the tensors of a state, by their place in it. One copy at a time: `take` again only when the one before has been used."""

    def __init__(self):
        self._kept: dict[tuple, torch.Tensor] = {}

    def take(self, state: Any) -> tuple[Any, Callable[[], None]]:
        """(a copy of `state`, what waits until its tensors are there)."""
        devices: set[torch.device] = set()
        copied = self._copy(state, (), devices)
        events = [_event(device) for device in devices]

        def ready() -> None:
            for event in events:
                event.synchronize()

        return copied, ready

    def _copy(self, value: Any, place: tuple, devices: set[torch.device]) -> Any:
        if isinstance(value, torch.Tensor):
            if not value.is_cuda:
                return value.detach().to("cpu", copy=True)
            devices.add(value.device)
            return self._memory(value, place).copy_(value.detach(), non_blocking=True)
        if isinstance(value, dict):
            return {name: self._copy(one, (*place, name), devices) for name, one in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._copy(one, (*place, number), devices) for number, one in enumerate(value))
        return value

    def _memory(self, like: torch.Tensor, place: tuple) -> torch.Tensor:
        kept = self._kept.get(place)
        if kept is None or kept.shape != like.shape or kept.dtype != like.dtype:
            try:
                kept = torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
            except RuntimeError:  # more than the system lets a process lock
                kept = torch.empty(like.shape, dtype=like.dtype)
            self._kept[place] = kept
        return kept


def _event(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event
