"""What a pass over prompts needs to know, on the device, in buffers of fixed size: so that a CUDA graph of it serves every pass that fits.

Notable: tokens beyond those of the pass have no slot, so that nothing of them is kept. Behind prompts without a past they belong to the last one,
whose tokens do not see what follows; else they are one more sequence, which sees nothing. Sizes go up in steps of a half or a third: at most a third
of a pass is padding. Where that would cost more than Python's launches, of more than FEW_TOKENS, it is an eighth. One copy fills all (packed.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from labkernels.kvcache.caches import Step
from labkernels.llm.inference.packed import Packed

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
    """The buffers: the tokens, the numbers of a Step, and which tokens are the ends."""

    def __init__(self, size: PromptSize, page_size: int, device: torch.device):
        rows = size.sequences + (not size.whole)
        self.size, self.max_seqlen_q = size, min(size.tokens, size.reach)
        shapes = {
            "tokens": (torch.int64, (size.tokens,)), "slots": (torch.int64, (size.tokens,)), "positions": (torch.int64, (size.tokens,)),
            "ends": (torch.int64, (size.sequences,)), "lengths": (torch.int32, (rows,)), "cu_seqlens_q": (torch.int32, (rows + 1,)),
            "block_table": (torch.int32, (rows, -(-size.reach // page_size))),
        }  # fmt: skip
        self._packed = Packed(shapes, device)
        for name, tensor in self._packed.tensors.items():
            setattr(self, name, tensor)
        own = self._packed.arrays()
        own["slots"].fill(-1)
        own["cu_seqlens_q"][1:] = size.tokens  # all is padding
        self._packed.send()

    def fill(self, tokens: torch.Tensor, step: Step, ends: list[int]) -> None:
        own, given, count, rows = self._packed.arrays(), step.numbers, len(tokens), len(step.sequences)
        own["tokens"][:count], own["slots"][:count], own["positions"][:count] = tokens.cpu().numpy(), given.slots, given.positions
        own["slots"][count:] = -1
        own["lengths"][:rows], own["lengths"][rows:] = given.lengths, 0
        own["cu_seqlens_q"][: rows + 1], own["cu_seqlens_q"][rows + (not self.size.fresh) :] = given.cu_seqlens_q, self.size.tokens
        width = min(own["block_table"].shape[1], given.block_table.shape[1])
        own["block_table"][:rows, :width] = given.block_table[:, :width]
        own["ends"][: len(ends)], own["ends"][len(ends) :] = ends, 0  # those that there are not are the first token's
        self._packed.send()
