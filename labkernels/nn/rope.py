"""`RotaryEmbedding`: rotary position embedding as a layer without parameters."""

from __future__ import annotations

import torch
from torch import nn

from labkernels.functional import rope
from labkernels.rope import rope_frequencies, rope_table


class RotaryEmbedding(nn.Module):
    """Turns queries and keys by their positions: `lk.functional.rope` with frequencies of its own.

        rotary = RotaryEmbedding(head_dim=128, base=500_000.0, scaling=config["rope_scaling"]).to("cuda")
        q, k = rotary(q, k)                                 # (batch, heads, seq, head_dim) -> the same shapes
        q, k = rotary(q, k, positions)                      # (seq,) or (batch, seq), int32 or int64

    The first `rotary_dim` elements of a head are turned (all, unless given), the rest passes through. `scaling` is a Hugging Face config's
    rope_scaling: see `rope_frequencies`. With `max_positions` sines and cosines are read from a table of so many positions, and are worked
    out in the kernel otherwise. Pairs are half a head apart, as in Hugging Face's Llama, or neighbours if `interleaved`.

    `angles`, a float32 buffer that state_dict() leaves out, keeps its dtype whatever the layer is cast to. Raises ArgumentError.
    """

    def __init__(
        self,
        head_dim: int,
        base: float = 10_000.0,
        scaling: dict | None = None,
        rotary_dim: int | None = None,
        max_positions: int | None = None,
        interleaved: bool = False,
        *,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        self.head_dim, self.base, self.scaling, self.max_positions, self.interleaved = head_dim, base, scaling, max_positions, interleaved
        self.rotary_dim = head_dim if rotary_dim is None else rotary_dim
        self.register_buffer("angles", self._angles(device), persistent=False)

    def forward(self, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """q (batch, heads, seq, head_dim) and k (batch, kv_heads, seq, head_dim), turned: new tensors."""
        return rope(q, k, self.angles, positions, self.interleaved)

    def extra_repr(self) -> str:
        return f"head_dim={self.head_dim}, base={self.base}, rotary_dim={self.rotary_dim}, interleaved={self.interleaved}"

    def _angles(self, device) -> torch.Tensor:
        frequencies = rope_frequencies(self.rotary_dim, self.base, self.scaling)
        return (frequencies if self.max_positions is None else rope_table(frequencies, self.max_positions)).to(device)

    def _apply(self, fn, recurse=True):
        """Moves with the layer, and is made anew where the layer is cast: angles in 16 bits would be wrong by many turns."""
        moved = super()._apply(fn, recurse)
        if self.angles.dtype != torch.float32:
            self.angles = self._angles(self.angles.device)
        return moved
