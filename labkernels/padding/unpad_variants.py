"""How each version of `unpad` is launched, and on what it can run: rows gathered by number, as an embedding's are."""

from __future__ import annotations

import torch

from labkernels.embedding.gather import FOLDER, gather_naive, gather_refusal, gather_vectors, vectors_refusal
from labkernels.operation import Variant


def v1_naive(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    rows = x.flatten(0, 1)
    return gather_naive(rows if gather_refusal(rows, indices) is None else rows.contiguous(), indices)


def v2_vectors(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    return gather_vectors(x.flatten(0, 1), indices)


def _accepts(x, indices) -> str | None:
    if x.stride(0) != x.stride(1) * x.shape[1] and x.shape[0] > 1 and x.shape[1] > 1:
        return "takes sequences that lie one after the other"
    return vectors_refusal(x.flatten(0, 1), indices)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "one element a thread", FOLDER / "v1_gather_naive.cu"),
        Variant("v2_vectors", v2_vectors, "16 bytes a load, several rows on their way", FOLDER / "v2_gather_vectors.cu", _accepts),
    )
}
