"""What `sample_tokens` draws, in plain PyTorch: the sorted definition of what is kept, and the same noise as the kernels'."""

from __future__ import annotations

import math

import torch

_WORD = 0xFFFFFFFF
_ROUNDS = 10


def adjusted(logits: torch.Tensor, repetition_penalty, previous: torch.Tensor | None) -> torch.Tensor:
    """The logits after the repetition penalty: those of previous tokens divided by it if positive, else multiplied."""
    if previous is None:
        return logits
    if previous.dtype == torch.bool:
        before = previous
    else:
        marks = torch.zeros((logits.shape[0], logits.shape[1] + 1), dtype=torch.bool, device=logits.device)
        inside = (previous >= 0) & (previous < logits.shape[1])
        before = marks.scatter_(1, torch.where(inside, previous.long(), logits.shape[1]), True)[:, :-1]
    penalty = column(repetition_penalty, logits)
    return torch.where(before, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def column(setting, logits: torch.Tensor) -> torch.Tensor:
    """A setting as one number a row, (rows, 1), in the precision of the logits; first rounded to float32, as the kernels take it."""
    value = torch.as_tensor(setting, device=logits.device)
    value = value.to(torch.float32) if value.is_floating_point() else value
    return value.to(logits.dtype).expand(logits.shape[0])[:, None]


def kept(logits: torch.Tensor, temperature, top_k, top_p, min_p) -> torch.Tensor:
    """Which tokens can be drawn: a bool mask, from logits after the penalty. By sorting; equal logits stay or go together.

    A token stays if fewer than top_k tokens are larger; then if those larger ones that are left have less than top_p of what is left; and if
    it has min_p of the largest probability. Greedy rows (temperature 0) keep the largest."""
    vocab = logits.shape[1]
    greedy = column(temperature, logits) <= 0
    top_k, top_p, min_p = (column(setting, logits) for setting in (top_k, top_p, min_p))
    top_k = torch.where(greedy, 1, torch.where((top_k > 0) & (top_k < vocab), top_k, vocab))
    ranked, order = logits.sort(dim=1, descending=True)
    rank = torch.arange(vocab, device=logits.device)
    first_equal = torch.where(ranked == torch.roll(ranked, 1, 1), 0, rank)
    first_equal[:, 0] = 0
    larger = first_equal.cummax(1).values  # how many tokens are larger
    mass = _weights(ranked, temperature) * (larger < top_k)
    up_to = mass.cumsum(1)
    above = torch.where(larger > 0, up_to.gather(1, (larger - 1).clamp(min=0)), 0)
    stays = (larger < top_k) & ((above < top_p * up_to[:, -1:]) | (top_p >= 1) | greedy | (larger == 0))
    stays &= (_weights(ranked, temperature) >= min_p) | (larger == 0)
    stays &= ranked > -torch.inf
    return torch.zeros_like(stays).scatter_(1, order, stays)


def probabilities(logits: torch.Tensor, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, previous=None) -> torch.Tensor:
    """With which probability each token is drawn, (rows, vocab)."""
    logits = adjusted(logits, repetition_penalty, previous)
    mask = kept(logits, temperature, top_k, top_p, min_p)
    greedy = column(temperature, logits) <= 0
    first = torch.zeros_like(mask).scatter_(1, logits.argmax(1, keepdim=True), True)
    weights = torch.where(greedy, first.to(logits.dtype), _weights(logits, temperature) * mask)
    return weights / weights.sum(1, keepdim=True)


def _weights(logits: torch.Tensor, temperature) -> torch.Tensor:
    temperature = column(temperature, logits)
    temperature = torch.where(temperature > 0, temperature, 1.0)
    return ((logits - logits.amax(1, keepdim=True)) / temperature).exp()


def philox(counter: list[torch.Tensor], seed: torch.Tensor) -> list[torch.Tensor]:
    """Philox4x32-10: four words (int64 tensors of 0 to 2^32 - 1) from four words and a seed of 64 bits."""
    x, y, z, w = counter
    key_x, key_y = seed & _WORD, seed >> 32 & _WORD
    for _ in range(_ROUNDS):
        by_x, by_z = x * 0xD2511F53, z * 0xCD9E8D57  # modulo 2^64
        x, y, z, w = (by_z >> 32 & _WORD) ^ y ^ key_x, by_z & _WORD, (by_x >> 32 & _WORD) ^ w ^ key_y, by_x & _WORD
        key_x, key_y = (key_x + 0x9E3779B9) & _WORD, (key_y + 0xBB67AE85) & _WORD
    return [x, y, z, w]


def row_numbers(setting, rows: int, device, step: int = 0) -> torch.Tensor:
    """A seed or a position as one int64 a row, (rows, 1). One number for all is the first row's; the next has `step` more."""
    value = torch.as_tensor(setting, dtype=torch.int64, device=device)
    return (value if value.dim() else value + step * torch.arange(rows, device=device))[:, None].expand(rows, 1)


def noise(rows: int, vocab: int, seed, position, device) -> torch.Tensor:
    """-log(-log(u)) for each token, (rows, vocab) float64, from words as in draw.cuh."""
    seed, position = row_numbers(seed, rows, device, step=1), row_numbers(position, rows, device)
    token = torch.arange(vocab, device=device)[None, :].expand(rows, vocab)
    words = philox([token // 4, torch.zeros_like(token), position & _WORD, position >> 32 & _WORD], seed)
    word = torch.stack(torch.broadcast_tensors(*words), -1).gather(-1, token[..., None] % 4)[..., 0]
    v = (word.to(torch.float32) * 2.0**-32 + 2.0**-33).clamp(max=1 - 2.0**-24).double()
    return -torch.log(-torch.log1p(-v))


def draw(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, previous=None, seed=0, position=0):
    """The tokens (rows,), and the logarithms of their probabilities under softmax(logits / temperature)."""
    rows, vocab = logits.shape
    lost = logits.isnan().any(1) | (logits == torch.inf).any(1) | (logits == -torch.inf).all(1)
    logits = adjusted(logits if logits.dtype == torch.float64 else logits.float(), repetition_penalty, previous)
    logits = torch.where(lost[:, None], 0.0, logits)
    mask = kept(logits, temperature, top_k, top_p, min_p)
    temperature = column(temperature, logits)
    greedy = temperature <= 0
    scale = 1 / torch.where(greedy, 1.0, temperature)
    random = torch.where(greedy, 0.0, noise(rows, vocab, seed, position, logits.device)).to(logits.dtype)
    scores = (logits - logits.amax(1, keepdim=True)) * scale + random
    token = scores.masked_fill(~mask, -torch.inf).argmax(1)
    logprobs = torch.log_softmax(logits * scale, 1).gather(1, token[:, None])[:, 0]
    return torch.where(lost, -1, token), torch.where(lost, math.nan, logprobs)
