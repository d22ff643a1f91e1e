"""What `padding_offsets` returns."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Padding(NamedTuple):
    """Where the tokens of padded sequences lie when packed one after the other, all int32.

    indices      (total,): a packed token's position among all, sequence * seq_len + position
    inverse      (batch, seq_len): a position's place when packed, -1 where there is padding
    cu_seqlens   (batch + 1,): where each sequence begins when packed, and at last the total; as attention_varlen takes it
    """

    indices: torch.Tensor
    inverse: torch.Tensor
    cu_seqlens: torch.Tensor
