"""Decode of more sequences than SAME_BITS (fused.py): where weights are read once for all, and what they are multiplied by counts, too.

    Idea      The stream of gemv keeps all rows of x in shared memory beside its ring. Of 16 rows of 8192 that is no room: three times the time. So 16-bit
              weights of up to MOST_FEW sequences keep the stream for the projections around attention, norm and sums outside, and both products of the
              feed-forward network are one kernel (ffn's v6); above, cuBLAS. Quantised weights multiply by quant_matmul, x in registers up to 16
              rows (v7), tiles of the tensor cores above (v5). Greedy tokens are found in the logits where they lie (decode/likeliest.cu).
              What reads a weight begins before the kernel before it has ended, in a captured graph, too (resting).
    Predicts  Llama-3.2-1B, 1100 tokens in the cache, us a layer of 16 sequences: 2 + 9 + 11 + 7 + 2 + 27 = 58 for 16 bits, 0.93 + 0.14 = 1.07 ms a
              token; int4 2 + 5 + 3 + 11 + 4 + 2 + 11 + 2 + 8 = 48, 0.77 + 0.07 = 0.84 ms.
    Measured  Replays of a step of 16 take 1.10 ms, 0.93 with int4 and a head of int8; as one stream each (gemv) 1.52 and 1.71. A whole run, from
              data/measured/h200/engine.csv, prompts of 1024: 1.15 and 0.96 ms; of 64 sequences 1.67 and 1.61. Behind prompts
              of 8192 64 sequences take 5.10 ms, 86% of the limit, and with caches of 8 bits 3.65.
    Wastes    Norms, RoPE and SwiGLU as launches of their own, of 2 to 3 us each; and what the CPU does between two rows of steps, while the
              GPU waits.
"""

from __future__ import annotations

import torch

from labkernels import functional as lk
from labkernels.cuda.settled import resting
from labkernels.cuda.variants import ceil_div, kernel, vector_width
from labkernels.kvcache.tensor_cores import Tiling, _key, accepts
from labkernels.llm.inference.decode_state import DecodeState
from labkernels.nn import QuantLinear

MOST_FEW = 16  # sequences for which 16-bit weights go through gemv and ffn's kernel for a few tokens
SHARE = 16_384  # logits of a candidate
MANY = Tiling(64, 1, 4, 4)


class Several:
    """The part of a `FusedRunner` that decodes for many sequences."""

    def _several(self, state: DecodeState, bests: torch.Tensor | None) -> torch.Tensor | None:
        buffers, model, x = self._buffers(state.rows), self.model, None
        few, stream = self._is_few(state.rows), buffers["hidden"]  # (rows, embed_dim)
        positions = None if few else (state.lengths - 1).clamp(min=0)
        with resting(self.early):
            for index, block in enumerate(model.blocks):
                normed, stream = self._normed(x, stream, block.attention_norm.weight)
                if few:
                    q = self._project(index, block, normed, buffers["q"], state, normed=True)  # (rows, heads, head_dim)
                    mixed = self._attend(index, q, state).flatten(1)
                    stream = self._gemv(mixed, block.attention.out_proj.weight, residual=stream, out=stream)
                    normed = lk.rms_norm(stream, block.ffn_norm.weight, self.config.norm_eps)
                    x = lk.ffn(normed, block.ffn.gate_up_proj.weight, block.ffn.down_proj.weight, activation="swiglu")
                else:
                    q = self._turn_and_write(index, self._linear(normed, block.attention.qkv_proj), positions, state.slots)
                    mixed = self._attend(index, q, state).flatten(1)
                    normed, stream = self._normed(self._linear(mixed, block.attention.out_proj), stream, block.ffn_norm.weight)
                    x = self._linear(self._gated(normed, block.ffn.gate_up_proj), block.ffn.down_proj)
            normed, _ = self._normed(x, stream, model.norm.weight)
            if bests is None:
                return self._head(normed)
            return self._likeliest(normed, bests, normed=True) if self._head_streams(state.rows) else self._likeliest_logits(normed, bests)

    def _is_few(self, rows: int) -> bool:
        """Do gemv and ffn's kernel for a few tokens serve these?"""
        return self.streams and rows <= MOST_FEW and not isinstance(self.model.blocks[0].ffn.down_proj, QuantLinear)

    def _tiling_of_many(self, q: torch.Tensor, k: torch.Tensor, room: int) -> Tiling | None:
        """Small blocks, so that those of all heads of 64 sequences run at the same time; None where v6 (kvcache), which deals out what lengths leave
        free, is the better one."""
        head_dim, row_tiles, many = _key(q, k)
        if not many or (head_dim, row_tiles) != (64, 1) or k.element_size() == 1 or room > 2048 or accepts(q, k, k, None) is not None:
            return None
        return MANY

    def _candidates(self) -> int:
        return ceil_div(self.config.vocab_size, SHARE)

    def _likeliest_logits(self, normed: torch.Tensor, bests: torch.Tensor) -> None:
        head = self.model.head
        logits = head(normed) if isinstance(head, QuantLinear) else torch.nn.functional.linear(normed, self.model.head_weight)
        width = vector_width(16 // logits.element_size(), logits)
        run = kernel(self.folder / "likeliest.cu", "likeliest_logits", logits.dtype, width)
        rows, vocab = logits.shape
        self._launch(run, (bests.shape[1], rows, 1), (256, 1, 1), (logits, bests, vocab, SHARE), 0, None)
