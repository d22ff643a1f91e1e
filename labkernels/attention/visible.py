"""What the launchers pass to kernels that include visible.cuh: windows as two ints, masks as kind, pointer and strides."""

from __future__ import annotations

import struct

import torch

UNLIMITED = 0x3FFFFFFF  # a side of a window without bound, as in visible.cuh

MASK_NONE, MASK_BOOL, MASK_ADDITIVE, MASK_ADDITIVE_FLOAT = range(4)  # MaskKind in visible.cuh


def window_sides(causal: bool, window: tuple[int | None, int | None] | None) -> tuple[int, int]:
    """(window_left, window_right) as the kernels take them: UNLIMITED where there is no bound; causal bounds the right side at 0."""
    left, right = (UNLIMITED if side is None else min(side, UNLIMITED) for side in window or (None, None))
    return left, min(right, 0) if causal else right


def mask_operand(mask: torch.Tensor | None, q: torch.Tensor, kv_len: int) -> tuple[int, torch.Tensor | None, bytes]:
    """(kind, the mask to pass as a pointer, its MaskStrides) of a mask broadcastable to (batch, heads, seq_len, kv_len)."""
    if mask is None:
        return MASK_NONE, None, bytes(32)
    kind, mask = {torch.bool: MASK_BOOL, q.dtype: MASK_ADDITIVE}.get(mask.dtype, MASK_ADDITIVE_FLOAT), mask.expand(*q.shape[:3], kv_len)
    return kind, mask, struct.pack("<4q", *mask.stride())
