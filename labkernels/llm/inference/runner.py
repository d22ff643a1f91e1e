"""The ladder of engines: what computes a pass through the model. `RUNNERS` has its rungs, `make_runner` picks one.

    v1 naive    everything again for each token, by the model itself                      naive.py
    v2 cached   keys and values are kept, PyTorch computes the new tokens                 cached.py
    v3 fused    this package's kernels, five launches a layer, buffers allocated once     fused.py
    v4 graphs   one launch a token: a CUDA graph, drawing the token included              graphs.py
    v5          v4 with quantised weights, or a quantised cache: less to read             quantized.py
    v6 early    v4 whose kernels begin before the one before has ended                    graphs.py

All take the same steps of the same paged cache, so that the scheduler does not know which one runs.
"""

from __future__ import annotations

import importlib
from typing import Protocol

import torch

from labkernels.errors import ArgumentError
from labkernels.kvcache.caches import Step
from labkernels.llm.inference.cache import EngineCache

RUNNERS = {
    "naive": "labkernels.llm.inference.naive:NaiveRunner",
    "cached": "labkernels.llm.inference.cached:CachedRunner",
    "fused": "labkernels.llm.inference.fused:FusedRunner",
    "graphs": "labkernels.llm.inference.graphs:GraphRunner",
    "early": "labkernels.llm.inference.graphs:EarlyRunner",
}


class Runner(Protocol):
    """Computes new tokens. The step says where they belong; their slots are handed out already."""

    lookahead: int  # decode steps in a row that it can make without the CPU; above 1 it has decode_steps (graphs.py), which draws

    def prefill(self, tokens: torch.Tensor, step: Step, ends: list[int]) -> torch.Tensor:
        """tokens (n,) int64, those of step.sequences one after the other, on the CPU or where the model is, to float32 logits (len(ends), vocab)
        after the tokens at `ends`."""

    def decode(self, tokens: torch.Tensor, step: Step) -> torch.Tensor:
        """One token of each sequence, (batch,) int64, to float32 logits (batch, vocab)."""


def make_runner(name: str, model, cache: EngineCache, **options) -> Runner:
    """The rung `name`; "auto" is the highest that can run this model where it lies. Raises ArgumentError with the reason why one cannot."""
    if name != "auto" and name not in RUNNERS:
        raise ArgumentError(f"Engine: runner is {name!r}; it must be 'auto' or one of {', '.join(map(repr, RUNNERS))}")
    if name != "auto":
        return _load(name)(model, cache, **options)
    for candidate in ("early", "graphs", "fused"):
        made = _load(candidate)
        if made.refusal(model, cache) is None:
            return made(model, cache, **options)
    return _load("cached")(model, cache, **options)


def _load(name: str):
    module, _, attribute = RUNNERS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
