"""Weights to `QuantizedWeight`: round to nearest with the scale of the largest number, or with the scale that errs least.

    quantize(weight, "int4", group_size=128)                   # round to nearest
    quantize(weight, "int4", group_size=128, search="mse")     # scales searched: at most the error of the first, in each group
    gptq.quantize_gptq(weight, calibration, "int4", 128)       # what earlier columns did wrong, later ones make good
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from labkernels.errors import ArgumentError
from labkernels.quant.formats import FOUR_BIT, FP8_MAX, GROUP_SIZES, NF4, SCHEMES, QuantizedWeight, pack4, padded_columns

SMALLEST_SCALE = 1e-12  # of a group of zeros: any scale will do, but 0 divides badly
AT_ONCE = 2**24  # numbers, some rows: in float32, several times over, all of a large head would take more than the rest of its model
SHRINK_STEPS = 40  # candidates of the search: 1, 0.985, ... of the largest number


def quantize(
    weight: torch.Tensor,
    scheme: str = "int4",
    group_size: int | None = None,
    search: str = "absmax",
    codebook: torch.Tensor | None = None,
) -> QuantizedWeight:
    """`weight` (n, k), floating, rounded to the nearest number that `scheme` has.

    schemes: int8, fp8 (one scale a row), int4, nf4, codebook (one scale, and for int4 a zero, for each `group_size` columns: 32, 64, or
    128 unless given). `search`: "absmax" has scales that reach the largest number of each group, "mse" shrinks them while that makes
    the squared error less. `codebook`: 16 numbers for the scheme codebook, of which the largest in size should be 1.
    A k that is no multiple of the group is padded with columns that no activation meets. Raises ArgumentError.
    """
    group_size = check_request("quantize", weight, scheme, group_size, search, codebook)
    n, k = weight.shape
    columns = padded_columns(k, scheme, group_size)
    book = None if scheme not in ("nf4", "codebook") else torch.tensor(NF4, device=weight.device) if codebook is None else codebook.float()
    pieces = []
    for rows in weight.detach().split(max(1, AT_ONCE // columns)):
        groups = F.pad(rows.float(), (0, columns - k)).view(len(rows), -1, group_size or columns)  # (rows, groups, group)
        scales = find_scales(groups, scheme, search, book)
        numbers = round_to(groups, scales, scheme, book).view(len(rows), columns)
        pieces.append(assemble(numbers, scales, scheme, (len(rows), k), group_size, book))
    if len(pieces) == 1:
        return pieces[0]
    packed = torch.cat([piece.packed.view(torch.uint8) for piece in pieces]).view(pieces[0].packed.dtype)
    scales = torch.cat([piece.scales for piece in pieces], dim=1 if scheme in FOUR_BIT else 0)
    return QuantizedWeight(scheme, (n, k), packed, scales, group_size, book)


def check_request(who: str, weight, scheme, group_size, search="absmax", codebook=None) -> int | None:
    """The group size, 128 where none is given for a scheme that has groups; ArgumentError for what cannot be quantised."""
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ArgumentError(f"{who}: weight is {weight.dtype} of shape {tuple(weight.shape)}; it must be floating, (n, k)")
    if not weight.numel():
        raise ArgumentError(f"{who}: weight has shape {tuple(weight.shape)}; there is nothing to quantise")
    if scheme not in SCHEMES:
        raise ArgumentError(f"{who}: scheme is {scheme!r}; it must be one of {', '.join(SCHEMES)}")
    if scheme not in FOUR_BIT and group_size is not None:
        raise ArgumentError(f"{who}: group_size is {group_size}; {scheme} has one scale a row and takes None")
    group_size = (128 if group_size is None else group_size) if scheme in FOUR_BIT else None
    if group_size is not None and group_size not in GROUP_SIZES:
        raise ArgumentError(f"{who}: group_size is {group_size}; it must be one of {', '.join(map(str, GROUP_SIZES))}")
    if search not in ("absmax", "mse"):
        raise ArgumentError(f"{who}: search is {search!r}; it must be 'absmax' or 'mse'")
    if (codebook is None) == (scheme == "codebook"):
        raise ArgumentError(f"{who}: codebook is {'missing' if codebook is None else 'given'}; the scheme codebook takes one, and no other")
    if codebook is not None and (tuple(codebook.shape) != (16,) or not codebook.is_floating_point()):
        raise ArgumentError(f"{who}: codebook is {codebook.dtype} of shape {tuple(codebook.shape)}; it must be 16 floating numbers")
    return group_size


def find_scales(groups: torch.Tensor, scheme: str, search: str = "absmax", codebook: torch.Tensor | None = None) -> torch.Tensor:
    """Scales (n, groups, 1), or for int4 scales and zeros (n, groups, 2), as they will be stored, for groups (n, groups, group)."""
    best, best_error = None, None
    for scales in _candidates(groups, scheme, search, codebook):
        if search == "absmax":
            return scales
        error = (restored(round_to(groups, scales, scheme, codebook), scales, scheme, codebook) - groups).square().sum(-1, keepdim=True)
        if best is None:
            best, best_error = scales, error
        else:
            better = error < best_error
            best, best_error = torch.where(better, scales, best), torch.where(better, error, best_error)
    return best


def _candidates(groups, scheme, search, codebook) -> Iterator[torch.Tensor]:
    """Scales that reach the largest number first, then ever smaller ones; rounded to how they are stored."""
    for step in range(SHRINK_STEPS if search == "mse" else 1):
        shrink = 1.0 - 0.6 * step / SHRINK_STEPS
        if scheme == "int4":
            low, high = shrink * groups.amin(-1, keepdim=True).clamp(max=0), shrink * groups.amax(-1, keepdim=True).clamp(min=0)
            scale = _stored((high - low) / 15, torch.bfloat16)
            yield torch.cat([scale, (-low / scale).round().clamp(0, 15)], dim=-1)
        else:
            reach = {"int8": 127.0, "fp8": FP8_MAX}.get(scheme) or codebook.abs().max()
            yield _stored(shrink * groups.abs().amax(-1, keepdim=True) / reach, torch.bfloat16 if scheme in FOUR_BIT else torch.float32)


def _stored(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return scale.clamp(min=SMALLEST_SCALE).to(dtype).float()


def round_to(values: torch.Tensor, scales: torch.Tensor, scheme: str, codebook: torch.Tensor | None = None) -> torch.Tensor:
    """The number of the scheme nearest to each of `values` (..., group): int32, or for fp8 float8_e4m3fn."""
    scaled = values / scales[..., :1]
    if scheme == "int8":
        return scaled.round().clamp(-127, 127).int()
    if scheme == "fp8":
        return scaled.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    if scheme == "int4":
        return (scaled.round() + scales[..., 1:]).clamp(0, 15).int()
    ordered, order = codebook.sort()
    middles = (ordered[1:] + ordered[:-1]) / 2
    return order[torch.bucketize(scaled.contiguous(), middles)].int()


def restored(numbers: torch.Tensor, scales: torch.Tensor, scheme: str, codebook: torch.Tensor | None = None) -> torch.Tensor:
    """What the numbers stand for, float32."""
    if scheme == "int4":
        return (numbers - scales[..., 1:]) * scales[..., :1]
    if codebook is not None:
        return codebook[numbers] * scales
    return numbers.float() * scales


def assemble(numbers: torch.Tensor, scales: torch.Tensor, scheme: str, shape, group_size: int | None, codebook=None) -> QuantizedWeight:
    """A QuantizedWeight from numbers (n, padded k) and scales (n, groups, 1 or 2)."""
    if scheme in FOUR_BIT:
        stored = scales.transpose(0, 1).to(torch.bfloat16).contiguous()
        stored = stored if scheme == "int4" else stored.squeeze(-1)
        return QuantizedWeight(scheme, tuple(shape), pack4(numbers), stored.contiguous(), group_size, codebook)
    packed = numbers.to(torch.int8) if scheme == "int8" else numbers
    return QuantizedWeight(scheme, tuple(shape), packed.contiguous(), scales.reshape(-1).float().contiguous())
