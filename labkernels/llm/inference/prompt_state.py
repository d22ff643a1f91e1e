"""What a pass over prompts needs to know, on the device, in buffers of fixed size: so that a CUDA graph of it serves every pass that fits.

Notable: tokens beyond those of the pass have no slot, so that nothing of them is kept. Behind prompts without a past they belong to the last one,
whose tokens do not see what follows; else they are one more sequence, which sees nothing. Sizes go up in steps of a half or a third: at most a third
of a pass is padding. Where that would cost more than Python's launches, of more than FEW_TOKENS, it is an eighth.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from labkernels.kvcache.caches import Step

LEAST_TOKENS, FEW_TOKENS, MOST_TOKENS = 16, 1024, 8192  # of a pass that is captured; Python starts larger ones long before they are needed
MOST_ROOM = 1 << 16  # tokens of all sequences for which a captured pass has room


class PromptSize(NamedTuple):
    tokens: int
    sequences: int
    reach: int  # tokens of a sequence, those in the cache among them
    fresh: bool  # no sequence has tokens in the cache before this pass
    whole: bool = True  # no sequence of padding is needed

    @classmethod
    def holding(cls, tokens: int, sequences: int, reach: int, fresh: bool = False) -> PromptSize | None:
        """The smallest size for such a pass, or None."""
        power = 1 << (max(tokens, LEAST_TOKENS) - 1).bit_length()
        stride = power if power == LEAST_TOKENS else power // 4 if power <= FEW_TOKENS else power // 16
        rows = 1 << (sequences - 1).bit_length()
        size = -(-tokens // stride) * stride
        if tokens > MOST_TOKENS or rows * reach > MOST_ROOM:
            return None
        return cls(size, rows, reach, fresh, whole=fresh or (tokens, sequences) == (size, rows))


class PromptState:
    """The buffers. `step` is made of them."""

    def __init__(self, size: PromptSize, page_size: int, device: torch.device):
        def zeros(*shape: int, dtype=torch.int64) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        rows = size.sequences + (not size.whole)
        self.size, self.tokens, self.ends = size, zeros(size.tokens), zeros(size.sequences)
        self.step = Step(
            sequences=(), slots=zeros(size.tokens) - 1, positions=zeros(size.tokens), lengths=zeros(rows, dtype=torch.int32),
            block_table=zeros(rows, -(-size.reach // page_size), dtype=torch.int32), cu_seqlens_q=zeros(rows + 1, dtype=torch.int32),
            max_seqlen_q=min(size.tokens, size.reach),
        )  # fmt: skip
        self.step.cu_seqlens_q[1:] = size.tokens  # all is padding

    def fill(self, tokens: torch.Tensor, step: Step, ends: list[int]) -> None:
        count, rows, own = len(tokens), len(step.sequences), self.step
        own.slots[count:] = -1
        own.lengths[rows:] = 0
        self.tokens[:count] = tokens
        own.slots[:count], own.positions[:count] = step.slots, step.positions
        own.lengths[:rows], own.cu_seqlens_q[: rows + 1] = step.lengths, step.cu_seqlens_q
        own.cu_seqlens_q[rows + (not self.size.fresh) :] = self.size.tokens
        width = min(own.block_table.shape[1], step.block_table.shape[1])
        own.block_table[:rows, :width] = step.block_table[:, :width]
        self.ends.copy_(torch.tensor([*ends, *[0] * (len(self.ends) - len(ends))]))  # those that there are not are the first token's
