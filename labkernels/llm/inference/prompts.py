"""The engine's pass over prompts, v3 and up: packed without padding, and nothing is computed that nobody asks for.

    Idea      Of a prompt the cache wants every layer's keys and values, and the next token one row of logits. So in the last layer only the ends
              of prompts get attention, projections and a feed-forward network: an L-th of the work falls away. SwiGLU is in the epilogue of its
              first product (matmul's v7): gates and ups never go through memory. Where no sequence has a past, attention reads keys and values
              as the projection left them (prompts.cu); where one has, the pages are packed first.
    Measured  data/measured/h200/engine.csv, Llama-3.2-1B: 8192 tokens to their first token 33.6 ms, torch.compile's pass 39.6; 16 prompts of 1024
              tokens 53 ms. While it was made, of 8192 tokens: without the last layer's saving and the epilogue 38.4 ms for 33.5, on the GPU alone;
              with the epilogue alone left out 35.4. A layer: attention 0.65 ms (cuDNN 0.62), gates and ups 0.69 (cuBLAS and SwiGLU 0.81).
    Wastes    The trips of queries and keys through memory for RoPE, those of the residual stream for each norm.

Quantised weights multiply as they do everywhere (quant_matmul). Caches of 8 bits are always read back: a chunk of a prompt sees what the next ones do.
"""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from torch.nn import functional as F

from labkernels import functional as lk
from labkernels.attention import attention_varlen
from labkernels.cuda.variants import ceil_div, kernel
from labkernels.kvcache.caches import Step
from labkernels.llm.inference.cache import EngineCache
from labkernels.llm.inference.prompt_state import PromptState
from labkernels.matmul import hopper
from labkernels.nn import QuantLinear
from labkernels.rope.launch import block_of, heads_each, pairs_of, position_layout

FILE = Path(__file__).with_suffix(".cu")
GATED_FROM = 64  # tokens from which the product with SwiGLU in its epilogue is faster by a tenth and more: measured on an H200, up to 8192
HEADS, THREADS = 3, 128  # of a thread and of a block, as in qkv_rope_cache


class Prompts:
    """The part of a `FusedRunner` that computes prompts."""

    cache: EngineCache
    device: torch.device
    dtype: torch.dtype

    @torch.no_grad()
    def prefill(self, tokens: torch.Tensor, step: Step, ends: list[int]) -> torch.Tensor:
        rows = torch.tensor(ends, dtype=torch.int64, device=self.device)  # now: a copy from the CPU waits for all that was launched before it
        tokens, _ = tokens.to(self.device), step.on_device  # and these
        return self._prompts(tokens, step, rows, self._longest(step), self._is_fresh(step))

    def _longest(self, step: Step) -> int:
        return max(map(self.cache.pages.length, step.sequences))

    def _is_fresh(self, step: Step) -> bool:
        """Is what the pass computes all that there is of its sequences, in the numbers that the cache keeps?"""
        return self.cache.k.dtype == self.dtype and sum(map(self.cache.pages.length, step.sequences)) == len(step.numbers.slots)

    def _prompts(self, tokens: torch.Tensor, step: Step | PromptState, ends: torch.Tensor, longest: int, fresh: bool) -> torch.Tensor:
        """Float32 logits (len(ends), vocab). No sequence of `step` is longer than `longest`; `fresh` as _is_fresh says."""
        model, eps, last = self.model, self.config.norm_eps, len(self.model.blocks) - 1
        table = step.block_table[:, : -(-longest // self.cache.pages.page_size)].contiguous()
        x, residual = None, F.embedding(tokens, model.embedding.weight)  # (n, embed_dim)
        for index, block in enumerate(model.blocks):
            normed, residual = self._normed(x, residual, block.attention_norm.weight)
            qkv = self._linear(normed, block.attention.qkv_proj)
            if index < last:
                mixed = self._attend_fresh(index, qkv, step) if fresh else self._attend_cached(index, qkv, step, table, longest)
            else:
                q = self._turn_and_write(index, qkv, step.positions, step.slots)
                if not len(ends):
                    return qkv.new_empty(0, self.config.vocab_size, dtype=torch.float32)
                mixed, residual = self._attend_ends(index, q, step, table, ends), residual[ends]
            normed, residual = self._normed(self._linear(mixed.flatten(1), block.attention.out_proj), residual, block.ffn_norm.weight)
            x = self._linear(self._gated(normed, block.ffn.gate_up_proj), block.ffn.down_proj)
        return self._head(lk.add_rms_norm(x, residual, model.norm.weight, eps=eps)[0])

    def _normed(self, x: torch.Tensor | None, residual: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of the stream with x added to it, and the stream."""
        if x is None:
            return lk.rms_norm(residual, weight, self.config.norm_eps), residual
        return lk.add_rms_norm(x, residual, weight, eps=self.config.norm_eps)

    def _attend_fresh(self, index: int, qkv: torch.Tensor, step: Step) -> torch.Tensor:
        """Queries, keys and values stay where the projection left them; the cache gets its copy. (n, heads, head_dim)"""
        c = self.config
        self._turn_in_place(index, qkv, step)
        q, k, v = qkv.unflatten(1, (-1, c.head_dim)).split([c.num_heads, c.num_kv_heads, c.num_kv_heads], dim=1)
        return attention_varlen(q, k, v, step.cu_seqlens_q, step.cu_seqlens_q, True, max_seqlen_q=step.max_seqlen_q)

    def _turn_in_place(self, index: int, qkv: torch.Tensor, step: Step) -> None:
        """RoPE of the queries and keys in qkv (n, qkv_dim), and keys and values into the cache; head_dim is a multiple of 16."""
        c, angles, caches = self.config, self.model.angles, self.cache.layer(index)[:2]
        (pairs, rows), width, heads, page_size = pairs_of(angles), 16 // qkv.element_size(), c.num_heads + 2 * c.num_kv_heads, caches[0].shape[2]
        each = heads_each(len(qkv) * heads * pairs // width, qkv, HEADS)
        block, slices = block_of(pairs // width, heads, each, threads=THREADS)
        sizes = len(qkv), c.num_heads, c.num_kv_heads, pairs, rows, qkv.stride(0), caches[0].shape[0] * page_size
        layouts = *(struct.pack("<3q2i", *cache.stride()[:3], page_size, 0) for cache in caches), position_layout(step.positions)
        run = kernel(FILE, "turn_in_place", qkv.dtype, width, each)
        run((ceil_div(len(qkv), block[2]), slices), block, (qkv, *caches, angles, step.positions, step.slots, *sizes, *layouts))

    def _attend_cached(self, index: int, qkv: torch.Tensor, step: Step, table: torch.Tensor, longest: int) -> torch.Tensor:
        q = self._turn_and_write(index, qkv, step.positions, step.slots)
        k, v, k_scale, v_scale = self.cache.layer(index)
        packing = {"cu_seqlens_q": step.cu_seqlens_q, "max_seqlen_q": step.max_seqlen_q, "max_length": longest}
        return lk.prefill_attention(q, k, v, step.lengths, table, k_scale=k_scale, v_scale=v_scale, **packing)

    def _attend_ends(self, index: int, q: torch.Tensor, step: Step, table: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """Of the queries at `ends` alone, each the last of its sequence so far. (len(ends), heads, head_dim)"""
        k, v, k_scale, v_scale = self.cache.layer(index)
        sequences = torch.searchsorted(step.cu_seqlens_q[1:], ends.int(), right=True)
        lengths = (step.positions[ends] + 1).int()
        return lk.decode_attention(q[ends], k, v, lengths, table[sequences], k_scale=k_scale, v_scale=v_scale)

    def _gated(self, x: torch.Tensor, layer) -> torch.Tensor:
        """(n, embed_dim) to the products of SwiGLU, (n, ffn_dim)"""
        if isinstance(layer, QuantLinear) or len(x) < GATED_FROM or hopper.accepts(x, layer.weight.t()) or len(layer.weight) % 16:
            return lk.swiglu(self._linear(x, layer))
        return hopper.gated(x, layer.weight.t())
