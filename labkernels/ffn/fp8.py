"""The feed-forward network in 8-bit floats: weights with a scale a row, tokens and h rounded on the way with a scale a token. Forward only."""

from __future__ import annotations

from pathlib import Path

import torch

from labkernels.cuda.variants import kernel
from labkernels.errors import ArgumentError
from labkernels.ffn.reference import ACTIVATIONS, activation_number, is_gated
from labkernels.operation import dtype_name
from labkernels.scaled_matmul import scaled_matmul

FILE = Path(__file__).with_name("quantise.cu")
FLOAT8 = torch.float8_e4m3fn


def ffn_fp8(
    x: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    scale_1: torch.Tensor,
    scale_2: torch.Tensor,
    b1: torch.Tensor | None = None,
    b2: torch.Tensor | None = None,
    activation: str = "gelu",
) -> torch.Tensor:
    """act(x (scale_1 w1)^T + b1) (scale_2 w2)^T + b2, where w1 and w2 are float8_e4m3fn, as `fp8_rows` makes them.

    x (..., embed), b1 and b2 are bfloat16 or float16; scale_1 (rows of w1,) and scale_2 (embed,) float32; for the rest as in
    `labkernels.ffn.ffn`. Tokens, and the rows of h, are rounded to float8 with a scale each: the result errs by some 4% of its size. embed and ffn
    are multiples of 16. Raises ArgumentError that names the wrong input. Forward only.
    """
    _check(x, w1, w2, activation)
    tokens = x.reshape(-1, x.shape[-1])
    if not tokens.shape[0]:
        return x.clone()
    values, scales = fp8_rows(tokens)
    pre = scaled_matmul(values, w1.t(), scales, scale_1, b1, x.dtype)
    values, scales = fp8_rows(pre, activation)
    return scaled_matmul(values, w2.t(), scales, scale_2, b2, x.dtype).view(x.shape)


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


def _check(x, w1, w2, activation) -> None:
    if activation not in ACTIVATIONS:
        raise ArgumentError(f"ffn_fp8: activation is {activation!r}; it must be one of {', '.join(map(repr, ACTIVATIONS))}")
    if x.dtype not in (torch.bfloat16, torch.float16):
        raise ArgumentError(f"ffn_fp8: x is {dtype_name(x.dtype)}; it must be bfloat16 or float16")
    for name, weight in (("w1", w1), ("w2", w2)):
        if weight.dtype != FLOAT8 or weight.dim() != 2:
            raise ArgumentError(f"ffn_fp8: {name} is {dtype_name(weight.dtype)} {tuple(weight.shape)}; it must be a float8_e4m3fn matrix, as fp8_rows makes it")
    embed, ffn = w2.shape
    rows = 2 * ffn if is_gated(activation) else ffn
    if x.dim() == 0 or x.shape[-1] != embed:
        raise ArgumentError(f"ffn_fp8: x has shape {tuple(x.shape)}; with w2 {tuple(w2.shape)} its last axis must be {embed}")
    if w1.shape != (rows, embed):
        raise ArgumentError(f"ffn_fp8: w1 has shape {tuple(w1.shape)}; with w2 {tuple(w2.shape)} it must be {(rows, embed)}")
    if embed % 16 or ffn % 16:
        raise ArgumentError(f"ffn_fp8: w2 has shape {tuple(w2.shape)}; both must be multiples of 16")
