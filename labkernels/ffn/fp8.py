"""How `ffn_fp8` is launched: weights with a scale a row, tokens and h rounded on the way with a scale a token."""

from __future__ import annotations

from pathlib import Path

import torch

from labkernels.cuda.variants import kernel
from labkernels.errors import ArgumentError
from labkernels.ffn.reference import activation_number, is_gated
from labkernels.operation import Variant
from labkernels.scaled_matmul import scaled_matmul

FILE = Path(__file__).with_name("quantise.cu")
FLOAT8 = torch.float8_e4m3fn


def v1_quantised_rows(x, w1, w2, scale_1, scale_2, b1=None, b2=None, activation="gelu") -> torch.Tensor:
    values, scales = fp8_rows(x)
    pre = scaled_matmul(values, w1.t(), scales, scale_1, b1, x.dtype)
    values, scales = fp8_rows(pre, activation)
    return scaled_matmul(values, w2.t(), scales, scale_2, b2, x.dtype)


def fp8_rows(x: torch.Tensor, activation: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """act(x) as values (rows, cols) float8_e4m3fn and scales (rows,) float32, x = scale * value; each row's largest number becomes 448.

    x (rows, cols), for "swiglu" (rows, 2 cols), bfloat16, float16 or float32 with dense rows; cols is a multiple of 8.
    """
    rows, cols = x.shape[0], x.shape[1] // (2 if activation and is_gated(activation) else 1)
    if cols % 8:
        raise ArgumentError(f"fp8_rows: x has shape {tuple(x.shape)}; its rows must become multiples of 8 numbers")
    if x.stride(1) != 1 or x.stride(0) % 8 or x.data_ptr() % 16:
        x = x.contiguous()
    values = torch.empty((rows, cols), dtype=FLOAT8, device=x.device)
    scales = torch.empty(rows, dtype=torch.float32, device=x.device)
    if values.numel():
        number = activation_number(activation) if activation else 0
        kernel(FILE, "ffn_quantise", x.dtype, number)(rows, 256, (x, values.view(torch.uint8), scales, cols, x.stride(0)))
    return values, scales


VARIANTS = {
    "v1_quantised_rows": Variant("v1_quantised_rows", v1_quantised_rows, "scaled_matmul, and one kernel that activates and rounds rows", FILE)
}
