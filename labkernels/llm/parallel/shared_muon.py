"""Muon where ranks share each matrix: its momentum is put together for the iteration, which needs it whole; each rank applies its part.

Notable: momentum and master stay shared. All ranks iterate all matrices, as they do with DDP: what sharing costs is an all-gather of the momentum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from labkernels.llm.config import ModelConfig
from labkernels.llm.training.muon import Muon, muon_groups
from labkernels.llm.parallel.shared_state import Place


class SharedMuon(Muon):
    """`weights`: this rank's part of each, `places` says which, both by name; those that Muon takes are chosen as by `muon_groups`."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, nn.Parameter], places: Mapping[str, Place], lr: float, weight_decay: float):
        groups = muon_groups(_Blocks(config, weights))
        rows: Sequence = [group.pop("rows") for group in groups]
        super().__init__(groups, lr, weight_decay=weight_decay)
        self.places = {id(p): places[name] for name, p in weights.items()}
        for group, whole in zip(self.param_groups, rows):
            group["rows"] = whole

    def _momentum(self, p: torch.Tensor, group: dict, factor: torch.Tensor | None) -> torch.Tensor:
        return self.places[id(p)].whole(super()._momentum(p, group, factor))

    def _apply(self, p: torch.Tensor, group: dict, update: torch.Tensor) -> None:
        super()._apply(p, group, self.places[id(p)].part(update))


class _Blocks:
    """As much of a model as `muon_groups` reads."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, nn.Parameter]):
        self.config, self.blocks, self._weights = config, self, weights

    def named_parameters(self):
        return ((name, p) for name, p in self._weights.items() if name.startswith("blocks."))
