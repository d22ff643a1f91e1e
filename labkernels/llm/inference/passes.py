"""A pass through the model, from those whom the scheduler chose to what is new of each: chunks of prompts, one or more tokens of answers.

Notable:
- the cache hands out the slots before the runner computes, and a request counts as computed what is launched
- several tokens in a row are drawn on the GPU without the CPU looking; what was drawn after a stop is thrown away here
- a request whose logits hold NaN ends alone, and no page is shared that was written until then; the others get their tokens
"""

from __future__ import annotations

import numpy as np
import torch

from labkernels.llm.inference.cache import EngineCache
from labkernels.llm.inference.drawing import NOT_DRAWN, draw, log_probabilities
from labkernels.llm.inference.requests import Event, Request
from labkernels.llm.inference.runner import Runner
from labkernels.llm.inference.scheduler import Prefill, Scheduler


class Passes:
    """The part of an `Engine` that computes. The engine holds its lock meanwhile, and ends the requests of a pass that raises."""

    device: torch.device
    cache: EngineCache
    runner: Runner
    scheduler: Scheduler
    lookahead: int
    _counts: dict[str, int]

    def _prefill(self, prefill: Prefill) -> list[Event]:
        chunks, complete = prefill.chunks, prefill.complete
        step = self.cache.step({request.sequence: chunk for request, chunk in chunks.items()})
        ends, end = [], 0
        for request, chunk in chunks.items():
            end += len(chunk)
            if request in complete:
                ends.append(end - 1)
            request.computed += len(chunk)
        self._counts["computed_prompt_tokens"] += end
        self._counts["passes"] += 1
        tokens = np.array([token for chunk in chunks.values() for token in chunk])  # NumPy's: torch.tensor takes five times as long
        logits = self.runner.prefill(torch.from_numpy(tokens), step, ends)
        return self._take(complete, logits) if complete else []

    def _decode(self, requests: list[Request]) -> list[Event]:
        tokens = [request.upcoming(1) for request in requests]
        step = self.cache.step({request.sequence: token for request, token in zip(requests, tokens)})
        for request in requests:
            request.computed += 1
        self._counts["passes"] += 1
        logits = self.runner.decode(torch.tensor(tokens, device=self.device).flatten(), step)
        return self._take(requests, logits)

    def _take(self, requests: list[Request], logits: torch.Tensor) -> list[Event]:
        events = []
        for request, row, token in zip(requests, logits, draw(requests, logits)):
            events.append(self._took(request, token, *log_probabilities(request, row, token)))
        return events

    def _took(self, request: Request, token: int, logprob=None, top=None) -> Event:
        event = self._noted(request, token, logprob, top)
        if event.finish_reason:
            self._ended(event)
        return event

    def _noted(self, request: Request, token: int, logprob=None, top=None) -> Event:
        if token == NOT_DRAWN:
            return request.fail(f"the logits of request {request.id} hold NaN or infinity after {request.length} tokens")
        self._counts["generated_tokens"] += 1
        return request.take(token, logprob, top)

    def _ended(self, event: Event) -> None:
        """It is a request's last: its pages are free."""
        if event.finish_reason == "error":
            self.cache.pages.forget()  # what it wrote cannot be trusted
        self.scheduler.remove(event.request)

    def _draws(self, requests: list[Request]) -> bool:
        """Does the runner draw the tokens of these? Not where somebody wants logits."""
        return self.runner.lookahead > 1 and all(r.params.logprobs is None and r.params.repetition_penalty == 1 for r in requests)

    def _decode_steps(self, requests: list[Request], counts: list[int]) -> list[Event]:
        """The CPU looks at the first tokens while the last ones are drawn. Pages are given back when all have been."""
        drawn: list[list[int]] = [request.upcoming(1) for request in requests]  # what is computed: each one's last token, then what is drawn
        for request, count in zip(requests, counts):
            self.cache.reserve(request.sequence, count)
        self._counts["passes"] += max(counts)
        events = []
        for portion in self.runner.decode_steps(requests, counts):  # some tokens of each
            for tokens, new in zip(drawn, portion):
                tokens += new
            for step in range(max(map(len, portion))):  # in the order in which they were drawn
                for request, new in zip(requests, portion):
                    if step < len(new) and request.state != "finished":
                        events.append(self._noted(request, new[step]))
        for request, tokens, count in zip(requests, drawn, counts):
            self.cache.settle(request.sequence, tokens[:-1], count)
            request.computed += count
        for event in events:
            if event.finish_reason:
                self._ended(event)
        return events
