"""Steps that would harm the model are noticed before they are taken: a loss that is not finite, a gradient that is not, a spike.

The decision is made where the loss is: on a GPU nothing is waited for. `check` gives 1.0 or 0.0 as a tensor, which fused optimizers take as
`found_inf` and then change nothing; what happened is told one or more steps later by `events()`, when the GPU has come by.

    guard = LossGuard()
    skip = guard.check(step, loss, grad_norm)         # on several GPUs: of the mean loss of all ranks, so that all decide alike
    optimizer.found_inf, optimizer.grad_scale = skip, None;  optimizer.step()        # fused; else: if not skip.item(): optimizer.step()
    for event in guard.events(): print(event)         # raises TrainingError after too many losses in a row that are not finite
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

from labkernels.errors import ArgumentError, LabKernelsError

_FINE, _NOT_FINITE, _SPIKE, _NEW_LEVEL = range(4)


class TrainingError(LabKernelsError):
    """Training cannot go on; the text says what was seen and what to change."""


@dataclass(frozen=True)
class SkippedStep:
    """`str()` of it is the report. `kind` is "not_finite", "spike", or "new_level": that was taken, as spikes had become the rule."""

    step: int
    kind: str
    loss: float
    grad_norm: float
    usual: float

    def __str__(self) -> str:
        if self.kind == "new_level":
            return f"step {self.step}: the loss stays near {self.loss:.4g} (before: {self.usual:.4g}); taken as the new level"
        if self.kind == "spike":
            return f"step {self.step} skipped: loss {self.loss:.4g} far above the usual {self.usual:.4g}; gradient norm {self.grad_norm:.3g}"
        return f"step {self.step} skipped: loss {self.loss:.4g}, gradient norm {self.grad_norm:.3g} (usual loss {self.usual:.4g})"


class LossGuard:
    """A spike is a loss above the running mean by `deviations` standard deviations and by `least_rise` of the mean, after `warm_up` steps.

    After `patience` spikes in a row the next is taken: the level has changed. After `give_up` steps in a row that are not finite, `events`
    raises.
    """

    def __init__(
        self,
        *,
        deviations: float = 6.0,
        least_rise: float = 0.1,
        window: int = 50,
        warm_up: int = 20,
        patience: int = 4,
        give_up: int = 20,
    ):
        if min(deviations, least_rise) <= 0 or min(window, patience, give_up) < 1 or warm_up < 2:
            raise ArgumentError("LossGuard: deviations, least_rise, window, patience and give_up must be positive, warm_up at least 2")
        self.deviations, self.least_rise, self.window = deviations, least_rise, window
        self.warm_up, self.patience, self.give_up = warm_up, patience, give_up
        self._state: torch.Tensor | None = None  # float32: mean, variance, accepted steps, spikes in a row, not finite in a row
        self._told: deque[tuple[int, torch.Tensor, torch.cuda.Event | None]] = deque()
        self.skipped = 0  # steps, as far as `events` has seen

    @torch.no_grad()
    def check(self, step: int, loss: torch.Tensor, grad_norm: torch.Tensor | None = None) -> torch.Tensor:
        """float32 scalar on the loss's device: 1.0 if this step must not be taken, else 0.0."""
        loss = loss.detach().float().reshape(())
        norm = torch.zeros_like(loss) if grad_norm is None else grad_norm.detach().float().reshape(()).to(loss.device)
        if self._state is None:
            self._state = torch.zeros(5, device=loss.device)
        self._state = self._state.to(loss.device)
        mean, variance, accepted, spikes, not_finite = self._state.unbind()

        finite = torch.isfinite(loss) & torch.isfinite(norm)
        rise = torch.maximum(self.deviations * variance.sqrt(), self.least_rise * mean.abs())
        high = finite & (accepted >= self.warm_up) & (loss > mean + rise)
        new_level = high & (spikes >= self.patience)
        spike = high & ~new_level
        take = finite & ~spike

        # the first steps count alike, the later ones fade after `window`
        share = torch.where(new_level, torch.ones_like(loss), 1 / torch.clamp(accepted + 1, max=self.window))
        off = torch.where(take, loss - mean, torch.zeros_like(loss))  # NaN must not come near the mean
        new_variance = torch.where(new_level, variance, (1 - share) * (variance + share * off * off))
        self._state = torch.stack(
            [
                mean + share * off,
                torch.where(take, new_variance, variance),
                accepted + take,
                torch.where(spike, spikes + 1, torch.zeros_like(spikes)),
                torch.where(finite, torch.zeros_like(not_finite), not_finite + 1),
            ]
        )
        kind = torch.where(~finite, _NOT_FINITE, torch.where(spike, _SPIKE, torch.where(new_level, _NEW_LEVEL, _FINE))).float()
        self._tell(step, torch.stack([kind, loss, norm, mean, self._state[4]]))
        return (~take).float()

    def events(self, wait: bool = False) -> list[SkippedStep]:
        """What happened in the steps that the GPU has finished, each once; with `wait`, in all. Raises TrainingError, see the class."""
        found = []
        while self._told:
            step, numbers, ready = self._told[0]
            if ready is not None:
                if wait:
                    ready.synchronize()
                elif not ready.query():
                    break
            self._told.popleft()
            kind, loss, norm, usual, not_finite = numbers.tolist()
            if kind != _FINE:
                name = {_NOT_FINITE: "not_finite", _SPIKE: "spike", _NEW_LEVEL: "new_level"}[int(kind)]
                found.append(SkippedStep(step, name, loss, norm, usual))
                self.skipped += kind != _NEW_LEVEL
            if not_finite >= self.give_up:
                raise TrainingError(
                    f"{int(not_finite)} steps in a row had a loss or gradient that is not finite, up to step {step}; none was taken. "
                    "Resume with a lower learning rate or a longer warm-up, and look at the data there"
                )
        return found

    def state_dict(self) -> dict:
        return {"running": None if self._state is None else self._state.cpu().clone(), "skipped": self.skipped}

    def load_state_dict(self, state: dict) -> None:
        self._state = None if state["running"] is None else state["running"].clone()
        self.skipped = int(state["skipped"])
        self._told.clear()

    def _tell(self, step: int, numbers: torch.Tensor) -> None:
        ready = None
        if numbers.is_cuda:
            host = torch.empty(numbers.shape, pin_memory=True)
            host.copy_(numbers, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
            numbers = host
        self._told.append((step, numbers, ready))
