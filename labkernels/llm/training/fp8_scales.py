"""Scales of fp8 tensors that are known before the tensors are: those of the steps before ("delayed scaling", Micikevicius et al., arXiv:2209.05433).

Notable:
- a scale found from the tensor itself costs a walk over it, 0.05 to 0.13 ms for each of 8 tensors of a layer. The largest numbers of the last HISTORY
  steps say as much: activations, gradients and weights change slowly. What is larger nevertheless becomes the largest number of its format
- the kernels that make fp8 numbers leave the largest one that they saw behind; `step()` turns all of them into the next scales, a few launches for all
- before the first step there is no history: in it each tensor is looked at first (`Sites.fresh`)
"""

from __future__ import annotations

from typing import NamedTuple

import torch

HISTORY = 16  # steps
SCALE, LARGEST, INVERSE, COLUMNS = 0, 1, 4, 8  # where a site's row has what; cuBLAS reads INVERSE, and wants it to lie on 16 bytes


class Sites(NamedTuple):
    """Tensors that become fp8, of one layer."""

    rows: torch.Tensor  # (sites, COLUMNS) float32 on the layer's device
    fresh: torch.Tensor  # one bool on the CPU: there is no scale yet


class DelayedScales:
    """All sites of a model. `formats`: the fp8 dtype of each."""

    def __init__(self, formats: list[torch.dtype], device: torch.device):
        self.rows = torch.zeros((len(formats), COLUMNS), device=device)
        self.rows[:, SCALE] = self.rows[:, INVERSE] = 1.0
        self.top = torch.tensor([torch.finfo(dtype).max for dtype in formats], device=device)
        self.history = torch.zeros((HISTORY, len(formats)), device=device)
        self.fresh, self.steps = torch.ones(1, dtype=torch.bool), 0

    def parts(self, sizes: list[int]) -> list[Sites]:
        return [Sites(rows, self.fresh) for rows in self.rows.split(sizes)]

    @torch.no_grad()
    def step(self, group=None) -> None:
        """The scales of the next step. With a `group` of torch.distributed its ranks agree on them."""
        largest, before = self.rows[:, LARGEST], self.history.amax(0)
        if group is not None:
            torch.distributed.all_reduce(largest := largest.clone(), torch.distributed.ReduceOp.MAX, group=group)
        seen = largest.isfinite() & (largest > 0)  # a step that is skipped may have neither
        self.history[self.steps % HISTORY] = torch.where(seen, largest, before)
        largest = self.history.amax(0)
        scale = torch.where(largest > 0, self.top / largest, self.rows[:, SCALE])
        self.rows[:, SCALE], self.rows[:, INVERSE], self.rows[:, LARGEST] = scale, scale.reciprocal(), 0.0
        self.fresh.fill_(False)
        self.steps += 1

    def state_dict(self) -> dict:
        return {"rows": self.rows, "history": self.history, "steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        for name in ("rows", "history"):
            getattr(self, name).copy_(state[name])
        self.steps = int(state["steps"])
        self.fresh.fill_(self.steps == 0)
