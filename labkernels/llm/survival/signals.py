"""Being told to stop: SIGTERM (a scheduler, a shutdown) and Ctrl-C become a flag that training looks at between two steps.

    with StopSignals() as stop:
        for step in ...:
            ...
            if stop.requested:              # save and leave
                break

A second Ctrl-C interrupts at once. On several GPUs `stop.anywhere()` asks all ranks, so that all leave after the same step.
"""

from __future__ import annotations

import signal
import threading

import torch
import torch.distributed as dist


class StopSignals:
    """Takes the handlers of `signals` for the time of the block, and gives them back. Outside the main thread it does nothing."""

    def __init__(self, signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT)):
        self._signals = signals
        self._before: dict = {}
        self.received: signal.Signals | None = None

    @property
    def requested(self) -> bool:
        return self.received is not None

    def anywhere(self, device: torch.device | str = "cpu") -> bool:
        """Whether any rank was told to stop. All ranks call it after the same steps. `device`: where the backend's tensors live."""
        if not (dist.is_available() and dist.is_initialized()):
            return self.requested
        flag = torch.tensor([float(self.requested)], device=device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # None: not set by Python
        self._before.clear()

    def _receive(self, number: int, frame) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
