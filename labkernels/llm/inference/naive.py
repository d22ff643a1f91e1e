"""The engine, v1: naive. The model as it was trained, on the whole text, for every token again.

    Idea      The logits after the last token are all that is needed, and `model(tokens)` gives them.
    Predicts  Token n costs a pass over n tokens: prompt 64, answer 512 are 164,000 tokens of work for 512 of them.
    Measured  data/measured/h200/engine.csv: 17 tokens/s of Llama-3.2-1B after a prompt of 64, 508 launches each.
    Wastes    Keys and values of the text so far are the same as a token ago. v2 keeps them.
"""

from __future__ import annotations

import torch

from labkernels.kvcache.caches import Step


class NaiveRunner:
    """Reads of the cache nothing but whose tokens are whose."""

    lookahead = 1

    def __init__(self, model, cache, **_):
        self.model, self.cache = model, cache

    @torch.no_grad()
    def prefill(self, tokens: torch.Tensor, step: Step, ends: list[int]) -> torch.Tensor:
        owners = [step.cu_seqlens_q.tolist().index(end + 1) - 1 for end in ends]  # whose last token it is
        rows = [self._logits(self.cache.pages.tokens(step.sequences[owner])) for owner in owners]
        return torch.stack(rows) if rows else tokens.new_empty(0)

    @torch.no_grad()
    def decode(self, tokens: torch.Tensor, step: Step) -> torch.Tensor:
        return torch.stack([self._logits(self.cache.pages.tokens(sequence)) for sequence in step.sequences])

    def _logits(self, tokens) -> torch.Tensor:
        hidden = self.model.hidden(torch.tensor([tokens], device=self.model.angles.device))
        last, head = hidden[0, -1:], self.model.head
        return (torch.nn.functional.linear(last, self.model.head_weight) if head is None else head(last))[0].float()

