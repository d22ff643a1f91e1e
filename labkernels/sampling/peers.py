"""How others draw: Hugging Face's sort, torch.topk before it, FlashInfer. Each with its own random numbers, so each draws other tokens."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass

import torch

from labkernels.operation import Peer


@dataclass(frozen=True)
class Drawn:
    """Tokens drawn with somebody else's random numbers: right if each is one that the settings keep."""

    tokens: torch.Tensor


def hf_sort(logits, temperature=1.0, top_k=0, top_p=1.0, **_) -> Drawn:
    """transformers' TemperatureLogitsWarper, TopKLogitsWarper and TopPLogitsWarper, softmax and torch.multinomial."""
    scores = logits / temperature
    if top_k:
        scores = scores.masked_fill(scores < torch.topk(scores, top_k)[0][..., -1, None], -torch.inf)
    if top_p < 1:
        sorted_logits, sorted_indices = torch.sort(scores, descending=False)
        remove = sorted_logits.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        remove[..., -1:] = False
        scores = scores.masked_fill(remove.scatter(1, sorted_indices, remove), -torch.inf)
    return Drawn(torch.multinomial(torch.softmax(scores.float(), dim=-1), 1)[:, 0])


def topk_first(logits, temperature=1.0, top_k=0, top_p=1.0, **_) -> Drawn:
    """torch.topk, sorted as it comes; everything else on its k columns."""
    values, indices = torch.topk(logits, top_k)
    probabilities = torch.softmax(values.float() / temperature, dim=-1)
    above = probabilities.cumsum(-1) - probabilities
    chosen = torch.multinomial(probabilities.masked_fill(above >= top_p, 0.0), 1)
    return Drawn(indices.gather(1, chosen)[:, 0])


def flashinfer(logits, temperature=1.0, top_k=0, top_p=1.0, **_) -> Drawn:
    """The shortest of FlashInfer's ways to these settings: from logits where there is one, else softmax and then from probabilities."""
    sampling = _flashinfer()
    scores = logits if temperature == 1 else logits.float() / temperature
    if top_k:
        return Drawn(sampling.top_k_top_p_sampling_from_logits(scores, top_k, top_p, filter_apply_order="top_k_first"))
    if top_p < 1:
        return Drawn(sampling.top_p_sampling_from_probs(sampling.softmax(scores), top_p))
    return Drawn(sampling.sampling_from_logits(scores))


@functools.cache
def _flashinfer():
    import flashinfer.sampling

    return flashinfer.sampling


def _plain(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, previous=None, **_) -> str | None:
    if not logits.is_cuda:
        return "needs a GPU"
    if isinstance(temperature, torch.Tensor) or isinstance(top_k, torch.Tensor) or isinstance(top_p, torch.Tensor) or not temperature:
        return "takes the same settings for all rows, and a temperature above 0"
    return "takes neither min_p nor a penalty" if min_p or previous is not None else None


def _with_top_k(logits, temperature=1.0, top_k=0, **others) -> str | None:
    return _plain(logits, temperature, top_k, **others) or (None if top_k else "takes a top_k")


def _with_flashinfer(logits, **settings) -> str | None:
    return "flashinfer is not installed" if importlib.util.find_spec("flashinfer") is None else _plain(logits, **settings)


PEERS = {
    peer.name: peer
    for peer in (Peer("hf_sort", hf_sort, _plain), Peer("topk_first", topk_first, _with_top_k), Peer("flashinfer", flashinfer, _with_flashinfer))
}
