"""How good a model is: validation loss, bits per byte, and what it writes.

Notable: a loss per token cannot be compared between tokenizers, for one with more words has fewer, harder tokens. Bits per byte can: the
bits of all targets over the bytes of text that they stand for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch

from labkernels.errors import ArgumentError
from labkernels.llm.data.loader import IGNORED


class Evaluation(NamedTuple):
    loss: float  # nats a token
    bits_per_byte: float  # NaN where the bytes of the tokens are not known
    tokens: int


@torch.no_grad()
def evaluate(model, batches: Iterable, token_bytes: torch.Tensor | None = None) -> Evaluation:
    """The mean loss over `batches` (`Loader.one_epoch(n)`), each token counting the same. `token_bytes` (vocab_size,): `tokenizer.token_bytes()`."""
    was_training, bits, tokens, size = model.training, 0.0, 0, 0
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):  # another graph for a few batches is not worth its compilation
            for batch in batches:
                counted = batch.targets[batch.targets != IGNORED]
                loss = model(batch.inputs, batch.targets, **boundaries(batch))
                bits += float(loss) * counted.numel() / math.log(2) if counted.numel() else 0.0  # the mean of no token is NaN
                tokens += counted.numel()
                if token_bytes is not None:
                    size += int(token_bytes.to(counted.device)[counted].sum())
    finally:
        model.train(was_training)
    if not tokens:
        raise ArgumentError("evaluate: there was no batch; give at least one")
    return Evaluation(bits * math.log(2) / tokens, bits / size if size else math.nan, tokens)


def boundaries(batch) -> dict:
    """What a model takes beside inputs and targets where documents do not see each other."""
    return {} if batch.cu_seqlens is None else {"cu_seqlens": batch.cu_seqlens, "positions": batch.positions}


@torch.no_grad()
def sample(
    model, prompt: list[int], new_tokens: int = 64, temperature: float = 0.8, top_k: int = 50, seed: int = 0, stop: Iterable[int] = ()
) -> list[int]:
    """Tokens after `prompt`, drawn one by one; temperature 0 takes the likeliest. For a glance at a model in training: without a cache,
    every token computes all before it once more (`Engine` does not). No more than the last max_seq_len tokens are seen."""
    if not prompt:
        raise ArgumentError("sample: prompt is empty; give at least one token, such as the tokenizer's eos_id, which begins a document")
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    tokens, stop = list(prompt), set(stop)
    room = min(model.config.max_seq_len, len(tokens) + new_tokens)
    with torch.compiler.set_stance("force_eager"):
        for _ in range(new_tokens):
            seen = tokens[-room:]
            padded = torch.tensor([seen + [0] * (room - len(seen))], device=device)  # one length: what is behind is not seen
            logits = torch.nn.functional.linear(model.hidden(padded)[0, len(seen) - 1], model.head_weight).float().cpu()
            if temperature <= 0:
                tokens.append(int(logits.argmax()))
            else:
                values, indices = (logits / temperature).topk(min(top_k or len(logits), len(logits)))
                tokens.append(int(indices[torch.multinomial(values.softmax(0), 1, generator=generator)]))
            if tokens[-1] in stop:
                break
    return tokens[len(prompt) :]
