"""Next tokens from logits, each row by its request's settings and seed.

Notable: on a GPU one launch draws for all rows (labkernels.sampling). On the CPU its definition in PyTorch draws row by row, from the same noise: a
row's token is the same alone and in any batch. A draw's position is how many tokens the request has, so pre-emption changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from labkernels.llm.inference.requests import Request
from labkernels.sampling import reference, sample_tokens


NOT_DRAWN = -1  # in the place of a token: the logits hold NaN or infinity


def draw(requests: Sequence[Request], logits: torch.Tensor) -> list[int]:
    """A token for each request from its row of logits (rows, vocab), float32, or NOT_DRAWN."""
    plain = all(r.params.greedy and r.params.repetition_penalty == 1 for r in requests)
    if logits.is_cuda:
        return _on_gpu(requests, logits, plain)
    return [_on_cpu(request, row) for request, row in zip(requests, logits)]


def log_probabilities(request: Request, logits: torch.Tensor, token: int) -> tuple[float | None, dict[int, float] | None]:
    """Of the token and of the likeliest ones, if the request wants them, under softmax of its row (vocab,)."""
    if request.params.logprobs is None or token == NOT_DRAWN:
        return None, None
    all_of_them = torch.log_softmax(logits.float(), 0)
    values, ids = all_of_them.topk(min(request.params.logprobs, len(all_of_them)))
    return float(all_of_them[token]), dict(zip(ids.tolist(), values.tolist()))


def _on_cpu(request: Request, row: torch.Tensor) -> int:
    p = request.params
    if not torch.isfinite(row.max()) or row.isnan().any():
        return NOT_DRAWN
    if p.greedy and p.repetition_penalty == 1:
        return int(row.argmax())
    previous = torch.tensor([[*request.prompt, *request.tokens]]) if p.repetition_penalty != 1 else None
    drawn, _ = reference.draw(
        row[None], p.temperature, p.top_k, p.top_p, p.min_p, p.repetition_penalty, previous, request.seed % 2**63, len(request.tokens)
    )
    return int(drawn)


def _on_gpu(requests: Sequence[Request], logits: torch.Tensor, plain: bool) -> list[int]:
    if plain:
        largest, tokens = logits.max(1)  # NaN, where there is one; (rows,)
        return torch.where(largest.abs() < torch.inf, tokens, NOT_DRAWN).tolist()
    settings = settings_of(requests, logits.device)
    previous = None
    if any(request.params.repetition_penalty != 1 for request in requests):
        rows = [[*request.prompt, *request.tokens] for request in requests]
        width = max(map(len, rows))
        previous = torch.tensor([row + [-1] * (width - len(row)) for row in rows], device=logits.device)
    return sample_tokens(logits, previous=previous, **settings).tolist()


def settings_of(requests: Sequence[Request], device) -> dict[str, torch.Tensor]:
    """A tensor (rows,) for each setting of sample_tokens."""

    def column(values, dtype) -> torch.Tensor:
        return torch.tensor(list(values), dtype=dtype, device=device)

    return {
        "temperature": column((r.params.temperature for r in requests), torch.float32),
        "top_k": column((r.params.top_k for r in requests), torch.int32),
        "top_p": column((r.params.top_p for r in requests), torch.float32),
        "min_p": column((r.params.min_p for r in requests), torch.float32),
        "repetition_penalty": column((r.params.repetition_penalty for r in requests), torch.float32),
        "seed": column((r.seed % 2**63 for r in requests), torch.int64),
        "position": column((len(r.tokens) for r in requests), torch.int64),
    }
