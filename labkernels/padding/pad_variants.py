"""How each version of `pad` is launched, and on what it can run: rows gathered by number, zeros where there is none."""

from __future__ import annotations

import torch

from labkernels.embedding.gather import FOLDER, gather_naive, gather_refusal, gather_vectors, vectors_refusal
from labkernels.operation import Variant


def v1_naive(packed: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    return gather_naive(packed, inverse)


def v2_vectors(packed: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    return gather_vectors(packed, inverse)


def _accepts(packed, inverse) -> str | None:
    return gather_refusal(packed, inverse)


def _accepts_vectors(packed, inverse) -> str | None:
    return vectors_refusal(packed, inverse)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "one element a thread", FOLDER / "v1_gather_naive.cu", _accepts),
        Variant("v2_vectors", v2_vectors, "16 bytes a load, several rows on their way", FOLDER / "v2_gather_vectors.cu", _accepts_vectors),
    )
}
