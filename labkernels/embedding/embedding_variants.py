"""How each version of `embedding` is launched, and on what it can run."""

from __future__ import annotations

import torch

from labkernels.embedding.gather import FOLDER, gather_naive, gather_refusal, gather_vectors, vectors_refusal
from labkernels.operation import Variant


def v1_naive(tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return gather_naive(weight, tokens)


def v2_vectors(tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return gather_vectors(weight, tokens)


def _accepts(tokens, weight) -> str | None:
    return gather_refusal(weight, tokens)


def _accepts_vectors(tokens, weight) -> str | None:
    return vectors_refusal(weight, tokens)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "one element a thread", FOLDER / "v1_gather_naive.cu", _accepts),
        Variant("v2_vectors", v2_vectors, "16 bytes a load, several rows on their way", FOLDER / "v2_gather_vectors.cu", _accepts_vectors),
    )
}
