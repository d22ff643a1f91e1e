"""What can be wrong with the inputs of a loss."""

from __future__ import annotations

import torch

from labkernels.operation import dtype_name

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REDUCTIONS = ("mean", "sum", "none")


def of_logits(logits, target, scale=1.0, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, reduction="none") -> str | None:
    """Of cross_entropy, or None."""
    if logits.dim() != 2 or not logits.shape[1]:
        return f"logits has shape {tuple(logits.shape)}; it must have two axes, (rows, vocab), and at least one token"
    if logits.dtype not in DTYPES:
        return f"logits is {dtype_name(logits.dtype)}; it must be {', '.join(map(dtype_name, DTYPES))}"
    return of_target(target, logits.shape[:1], "logits", logits) or of_options(ignore_index, label_smoothing, z_loss, reduction)


def of_linear(x, weight, target, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, reduction="mean", chunk_tokens=None) -> str | None:
    """Of linear_cross_entropy, or None."""
    if x.dim() < 2 or not x.shape[-1]:
        return f"x has shape {tuple(x.shape)}; it must be (..., hidden)"
    if x.dtype not in DTYPES:
        return f"x is {dtype_name(x.dtype)}; it must be {', '.join(map(dtype_name, DTYPES))}"
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1] or not weight.shape[0]:
        return f"weight has shape {tuple(weight.shape)}; it must be (vocab, hidden = {x.shape[-1]})"
    if weight.dtype != x.dtype:
        return f"weight is {dtype_name(weight.dtype)}, x is {dtype_name(x.dtype)}; both must be of one dtype"
    if weight.device != x.device:
        return f"weight is on {weight.device}, x is on {x.device}; both must be on one device"
    if chunk_tokens is not None and (isinstance(chunk_tokens, bool) or not isinstance(chunk_tokens, int) or chunk_tokens < 0):
        return f"chunk_tokens is {chunk_tokens!r}; it must be an int of at least 0, or None"
    return of_target(target, x.shape[:-1], "x", x) or of_options(ignore_index, label_smoothing, z_loss, reduction)


def of_target(target, shape, of: str, beside) -> str | None:
    if target.shape != shape:
        return f"target has shape {tuple(target.shape)}; beside {of} {tuple(beside.shape)} it must be {tuple(shape)}"
    if target.dtype != torch.int64:
        return f"target is {dtype_name(target.dtype)}; it must be int64"
    if target.device != beside.device:
        return f"target is on {target.device}, {of} is on {beside.device}; both must be on one device"
    return None


def of_options(ignore_index, label_smoothing, z_loss, reduction) -> str | None:
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        return f"ignore_index is {ignore_index!r}; it must be an int"
    if not 0 <= label_smoothing <= 1:
        return f"label_smoothing is {label_smoothing}; it must be from 0 to 1"
    if not z_loss >= 0:
        return f"z_loss is {z_loss}; it must be at least 0"
    return None if reduction in REDUCTIONS else f"reduction is {reduction!r}; it must be {', '.join(REDUCTIONS)}"
