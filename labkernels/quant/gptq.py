"""GPTQ: columns are quantised one after the other, and what each does wrong to the layer's output, those still to come make good.

Frantar, Ashkboos, Hoefler, Alistarh: "GPTQ: Accurate post-training quantization for generative pre-trained transformers", 2023. The output's
error over the calibration inputs X (tokens, k) is tr(E H E^T), E the weight's error and H = X^T X. Quantising column i leaves it least if the
columns j > i move by -e_i [H^-1]_ij / [H^-1]_ii, with the inverse over the columns that are left: a row of the Cholesky factor of H^-1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from labkernels.errors import ArgumentError
from labkernels.quant.formats import NF4, QuantizedWeight, padded_columns
from labkernels.quant.quantizers import assemble, check_request, find_scales, restored, round_to

BLOCK = 128  # columns whose corrections are made one by one; all later columns get theirs in one product


def hessian(inputs: torch.Tensor) -> torch.Tensor:
    """H = X^T X / tokens (k, k), float32, of calibration inputs (..., k). Sums of these, weighted by tokens, are those of more inputs."""
    x = inputs.reshape(-1, inputs.shape[-1]).float()
    h = x.t() @ x / max(1, x.shape[0])
    return (h + h.t()) / 2  # the same bits on both sides of the diagonal


def quantize_gptq(
    weight: torch.Tensor,
    calibration: torch.Tensor,
    scheme: str = "int4",
    group_size: int | None = None,
    search: str = "mse",
    codebook: torch.Tensor | None = None,
    damping: float = 0.01,
    by_importance: bool = True,
) -> QuantizedWeight:
    """`weight` (n, k) quantised so that weight @ x errs little for x like `calibration`: inputs of the layer (..., k), or their `hessian` (k, k).

    A tensor of shape (k, k) that is symmetric is taken for a Hessian. The other arguments are those of `quantize`; each group's scale is found
    for the weight as corrected so far. `damping` is added to H's diagonal, as a share of its mean. `by_importance` quantises the columns with
    the largest inputs first within each group, so that there is more left to make them good. Raises ArgumentError.
    """
    group_size = check_request("quantize_gptq", weight, scheme, group_size, search, codebook)
    n, k = weight.shape
    if calibration.shape[-1] != k or not calibration.is_floating_point() or calibration.numel() == 0:
        found = f"{calibration.dtype} of shape {tuple(calibration.shape)}"
        raise ArgumentError(f"quantize_gptq: calibration is {found}; it must be inputs of the layer, (..., {k}), or ({k}, {k})")
    given = calibration.detach().to(weight.device, torch.float32)
    h = given if given.shape == (k, k) and torch.equal(given, given.t()) else hessian(given)
    if not h.isfinite().all():
        raise ArgumentError("quantize_gptq: calibration has numbers that are not finite, or too large for their squares to be summed")
    columns = padded_columns(k, scheme, group_size)
    book = None if scheme not in ("nf4", "codebook") else torch.tensor(NF4, device=weight.device) if codebook is None else codebook.float()

    left = F.pad(weight.detach().float(), (0, columns - k))
    order = _order(h, columns, group_size or columns, by_importance)
    factor = _inverse_factor(F.pad(h, (0, columns - k, 0, columns - k))[order][:, order], damping)
    left = left[:, order]
    numbers = torch.empty_like(left, dtype=torch.float8_e4m3fn if scheme == "fp8" else torch.int32)
    group_size_or_row = group_size or columns
    scales: list[torch.Tensor] = []
    for start in range(0, columns, BLOCK):
        end = min(columns, start + BLOCK)
        errors = torch.zeros((n, end - start), device=weight.device)
        for i in range(start, end):
            if i % group_size_or_row == 0:  # groups do not cross blocks: 128 is a multiple of each size
                scales.append(find_scales(left[:, None, i : i + group_size_or_row], scheme, search, book)[:, 0])
            number = round_to(left[:, i : i + 1], scales[-1], scheme, book)
            numbers[:, i : i + 1] = number
            errors[:, i - start] = (left[:, i] - restored(number, scales[-1], scheme, book)[:, 0]) / factor[i, i]
            left[:, i:end] -= errors[:, i - start, None] * factor[i, i:end]
        left[:, end:] -= errors @ factor[start:end, end:]
    return assemble(numbers[:, order.argsort()], torch.stack(scales, dim=1), scheme, (n, k), group_size, book)


def _order(h: torch.Tensor, columns: int, group: int, by_importance: bool) -> torch.Tensor:
    """In which order columns are quantised: groups stay together and in place, the most important of each first if wanted; padding last."""
    if not by_importance:
        return torch.arange(columns, device=h.device)
    importance = F.pad(h.diagonal(), (0, columns - h.shape[0]), value=-1.0).view(-1, group)
    within = importance.argsort(dim=1, descending=True, stable=True)
    return (within + group * torch.arange(importance.shape[0], device=h.device)[:, None]).flatten()


def _inverse_factor(h: torch.Tensor, damping: float) -> torch.Tensor:
    """U, upper triangular with U^T U = H^-1, in float64 while it is worked out. Columns that no input reaches get a diagonal of their own."""
    h = h.double().clone()
    diagonal = h.diagonal()
    mean = diagonal[diagonal > 0].mean() if (diagonal > 0).any() else torch.ones((), dtype=h.dtype, device=h.device)
    diagonal[diagonal <= 0] = mean
    diagonal += damping * mean
    factor, failed = torch.linalg.cholesky_ex(h)
    while failed.any():  # calibration with fewer tokens than columns: more damping
        diagonal += 10 * damping * mean + 1e-8 * mean
        factor, failed = torch.linalg.cholesky_ex(h)
    return torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True).float()
