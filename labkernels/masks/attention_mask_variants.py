"""How each version of `attention_mask` is launched, and on what it can run."""

from __future__ import annotations

from pathlib import Path

import torch

from labkernels.cuda.variants import ceil_div, kernel
from labkernels.operation import Variant

FOLDER = Path(__file__).parent
THREADS = 256
ROWS = 8  # of a block of v2
ALL = -1  # of a window's side


def v1_naive(lengths, seq_len, kv_len, causal=False, window=None, dtype=torch.bool, hidden=-torch.inf) -> torch.Tensor:
    out = _empty(lengths, seq_len, kv_len, dtype)
    args = (_bytes(out), lengths.contiguous(), len(lengths), seq_len, kv_len, *_sides(causal, window), *_values(dtype, hidden))
    kernel(FOLDER / "v1_mask_naive.cu", "mask_naive", *_type(dtype))(ceil_div(out.numel(), THREADS), THREADS, args)
    return out


def v2_vectors(lengths, seq_len, kv_len, causal=False, window=None, dtype=torch.bool, hidden=-torch.inf) -> torch.Tensor:
    out = _empty(lengths, seq_len, kv_len, dtype)
    width = 16 // out.element_size() if kv_len % (16 // out.element_size()) == 0 else 1
    threads = min(THREADS, 32 * ceil_div(kv_len, 32 * width))
    rows = len(lengths) * seq_len
    args = (_bytes(out), lengths.contiguous(), rows, seq_len, kv_len, *_sides(causal, window), *_values(dtype, hidden))
    kernel(FOLDER / "v2_mask_vectors.cu", "mask_vectors", *_type(dtype), width)(ceil_div(rows, ROWS), threads, args)
    return out


def _empty(lengths: torch.Tensor, seq_len: int, kv_len: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty((len(lengths), 1, seq_len, kv_len), dtype=dtype, device=lengths.device)


def _type(dtype: torch.dtype) -> tuple:
    return ("unsigned char",) if dtype == torch.bool else (dtype,)


def _bytes(out: torch.Tensor) -> torch.Tensor:
    return out.view(torch.uint8) if out.dtype == torch.bool else out


def _values(dtype: torch.dtype, hidden: float) -> tuple[float, float]:
    """What stands for a key that may be seen, and for one that may not."""
    return (1.0, 0.0) if dtype == torch.bool else (0.0, float(hidden))


def _sides(causal: bool, window) -> tuple[int, int]:
    """How many keys to the left and to the right may be seen."""
    left, right = window or (None, None)
    right = 0 if causal else right
    return ALL if left is None else left, ALL if right is None else right


def _accepts(lengths, seq_len, kv_len, causal=False, window=None, dtype=torch.bool, hidden=-torch.inf) -> str | None:
    too_far = any(side is not None and side + seq_len + kv_len >= 2**31 for side in window or ())
    return "counts rows and keys in 31 bits" if too_far or len(lengths) * seq_len >= 2**31 else None


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "one pair of a query and a key a thread", FOLDER / "v1_mask_naive.cu", _accepts),
        Variant("v2_vectors", v2_vectors, "16 bytes a store, a row's limits worked out once", FOLDER / "v2_mask_vectors.cu", _accepts),
    )
}
