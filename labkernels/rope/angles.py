"""How far each pair of a head turns from one position to the next: RoPE's frequencies, Llama 3's scaling of them, and tables of sines."""

from __future__ import annotations

import math

import torch

from labkernels.errors import ArgumentError


def rope_frequencies(
    rotary_dim: int, base: float = 10_000.0, scaling: dict | None = None, *, device: torch.device | str | None = None
) -> torch.Tensor:
    """The angle, in radians, by which each pair turns from one position to the next: base ** (-2 i / rotary_dim), float32 (rotary_dim / 2,).

    `scaling` is the `rope_scaling` of a Hugging Face config.json: None; {"rope_type": "linear", "factor": 4.0}, positions divided by a
    factor; or Llama 3's, {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192}: pairs that turn fast (wavelength below original / high_freq_factor) stay, slow ones (above
    original / low_freq_factor) are divided by the factor, those between are blended. Raises ArgumentError for any other.

    Su et al. 2021, arXiv:2104.09864; the scaling as in Meta's llama-models, apply_scaling.
    """
    if not isinstance(rotary_dim, int) or rotary_dim < 2 or rotary_dim % 2:
        raise ArgumentError(f"rope_frequencies: rotary_dim is {rotary_dim!r}; it must be an even int of at least 2")
    if not base > 0:
        raise ArgumentError(f"rope_frequencies: base is {base!r}; it must be positive")
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim
    return _scaled(float(base) ** -exponents, scaling).to(device=device, dtype=torch.float32)


def rope_table(frequencies: torch.Tensor, max_positions: int) -> torch.Tensor:
    """Cosines, then sines, of every pair at the positions 0 to max_positions - 1: float32 (max_positions, 2 * len(frequencies))."""
    angles = torch.arange(max_positions, dtype=torch.float64, device=frequencies.device)[:, None] * frequencies.double()
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()


def _scaled(frequencies: torch.Tensor, scaling: dict | None) -> torch.Tensor:
    kind = "default" if scaling is None else scaling.get("rope_type", scaling.get("type"))
    if kind == "default":
        return frequencies
    if kind not in ("linear", "llama3"):
        raise ArgumentError(f"rope_frequencies: scaling has rope_type {kind!r}; it must be 'default', 'linear' or 'llama3'")
    try:
        factor = float(scaling["factor"])
        if kind == "linear":
            return frequencies / factor
        low, high, original = (float(scaling[name]) for name in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))
    except KeyError as missing:
        raise ArgumentError(f"rope_frequencies: scaling of rope_type {kind!r} lacks {missing}") from None
    turns = original * frequencies / (2 * math.pi)  # of each pair, over the length that the model was trained on
    kept = ((turns - low) / (high - low)).clamp(0, 1)  # 0: divided by the factor, 1: left as it is
    return (1 - kept) * frequencies / factor + kept * frequencies
