"""The engine, v2: cached. Keys and values of the text so far are kept; PyTorch computes the new tokens alone.

    Idea      A new token needs the others' keys and values, and those do not change. They are kept in pages (labkernels.kvcache).
    Predicts  A token reads the weights once, and its sequence's keys and values: a thousandth of v1's work after a thousand tokens.
    Measured  data/measured/h200/engine.csv: 15 tokens/s of Llama-3.2-1B for v1's 17: the GPU waits for Python, and the pages cost more launches.
    Wastes    Fifty-four launches a layer, each with its trip through memory; attention sequence after sequence. v3 fuses and batches.

Notable: on the CPU each row's result is the same alone and in any batch and chunk, bit for bit: products go row by row, attention query by query.
BLAS would take another path for another number of rows. So greedy answers never depend on who else is served. `invariant=False` turns that off.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from labkernels.errors import ArgumentError
from labkernels.kvcache.caches import Step
from labkernels.kvcache.layout import LARGEST, dequantise, gather, quantise
from labkernels.llm.inference.cache import EngineCache
from labkernels.nn import QuantLinear


class CachedRunner:
    """Plain PyTorch, any device, any model of `Transformer`'s."""

    lookahead = 1

    def __init__(self, model, cache: EngineCache, invariant: bool | None = None, **_):
        self.model, self.cache, self.config = model, cache, model.config
        self.invariant = model.angles.device.type == "cpu" if invariant is None else invariant
        self._dense: dict[int, torch.Tensor] = {}

    def prefill(self, tokens: torch.Tensor, step: Step, ends: list[int]) -> torch.Tensor:
        return self._forward(tokens, step, ends)

    def decode(self, tokens: torch.Tensor, step: Step) -> torch.Tensor:
        return self._forward(tokens, step, list(range(len(tokens))))

    @torch.no_grad()
    def _forward(self, tokens: torch.Tensor, step: Step, ends: list[int]) -> torch.Tensor:
        model, config = self.model, self.config
        cos, sin = (each[:, None] for each in model.angles[step.positions].chunk(2, dim=-1))  # (n, 1, head_dim / 2)
        places = self._places(step)
        x = F.embedding(tokens.to(step.device), model.embedding.weight)  # (n, embed_dim)
        for index, block in enumerate(model.blocks):
            attention = block.attention
            normed = self._norm(x, block.attention_norm)
            qkv = self.linear(normed, attention.qkv_proj).unflatten(1, (-1, config.head_dim))
            q, k, v = qkv.split([config.num_heads, config.num_kv_heads, config.num_kv_heads], dim=1)  # (n, heads, head_dim)
            if config.qk_norm:
                q, k = self._norm(q, attention.q_norm), self._norm(k, attention.k_norm)
            self._write(index, _turn(k, cos, sin), v, step)
            out = self._attend(index, _turn(q, cos, sin), places)
            x = x + self.linear(out.flatten(1), attention.out_proj)
            x = x + self._ffn(self._norm(x, block.ffn_norm), block.ffn)
        x = self._norm(x[ends], model.norm)
        return self._product(x, model.head_weight if model.head is None else self._weight(model.head)).float()

    def linear(self, x: torch.Tensor, layer) -> torch.Tensor:
        """(n, in) -> (n, out)"""
        if isinstance(layer, QuantLinear) and x.is_cuda:
            return layer(x)
        return self._product(x, self._weight(layer))

    def _weight(self, layer) -> torch.Tensor:
        """(out, in), as plain numbers. On the CPU PyTorch multiplies by quantised weights, too: it keeps them unpacked."""
        if not isinstance(layer, QuantLinear):
            return layer.weight
        if id(layer) not in self._dense:
            self._dense[id(layer)] = layer.weight.dequantize(self.model.embedding.weight.dtype)
        return self._dense[id(layer)]

    def _product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if not self.invariant:
            return F.linear(x, weight)
        out = x.new_empty(len(x), len(weight))
        for row, result in zip(x, out):
            torch.mv(weight, row, out=result)
        return out

    def _norm(self, x: torch.Tensor, norm) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)

    def _ffn(self, x: torch.Tensor, ffn) -> torch.Tensor:
        if ffn.activation == "swiglu":
            gate, up = self.linear(x, ffn.gate_up_proj).chunk(2, dim=-1)
            return self.linear(F.silu(gate) * up, ffn.down_proj)
        hidden = F.gelu(self.linear(x, ffn.up_proj), approximate="tanh" if ffn.activation == "gelu_tanh" else "none")
        return self.linear(hidden, ffn.down_proj)

    def _write(self, layer: int, k: torch.Tensor, v: torch.Tensor, step: Step) -> None:
        page_size = self.cache.k.shape[3]
        pages, offsets = step.slots // page_size, step.slots % page_size
        for new, stored, scales in ((k, self.cache.k, self.cache.k_scale), (v, self.cache.v, self.cache.v_scale)):
            if stored.dtype in LARGEST:
                new, scale = quantise(new, stored.dtype)
                scales[layer][pages, :, offsets] = scale
            stored[layer][pages, :, offsets] = new

    def _places(self, step: Step) -> list[tuple[int, int, torch.Tensor]]:
        """Of each sequence its new tokens in the step, from .. to, and its row of the block table."""
        ends, lengths = step.cu_seqlens_q.tolist(), step.lengths.tolist()
        pages = [-(-length // self.cache.pages.page_size) for length in lengths]
        rows = [step.block_table[b : b + 1, :count] for b, count in enumerate(pages)]
        return [(ends[b], ends[b + 1], lengths[b], rows[b]) for b in range(len(lengths))]

    def _attend(self, layer: int, q: torch.Tensor, places) -> torch.Tensor:
        """q (n, heads, head_dim), each against its sequence up to itself."""
        out = torch.empty_like(q)
        group = self.config.num_heads // self.config.num_kv_heads
        k_all, v_all, k_scale, v_scale = self.cache.layer(layer)
        for first, end, length, table in places:
            k, v = (
                dequantise(gather(each, table, length)[0], None if scale is None else gather(scale, table, length)[0], q.dtype)
                for each, scale in ((k_all, k_scale), (v_all, v_scale))
            )  # (kv_heads, length, head_dim)
            if not self.invariant:
                mask = torch.arange(length, device=q.device) <= torch.arange(length - (end - first), length, device=q.device)[:, None]
                seen = F.scaled_dot_product_attention(q[None, first:end].transpose(1, 2), k[None], v[None], mask, enable_gqa=group > 1)
                out[first:end] = seen[0].transpose(0, 1)
                continue
            for i in range(first, end):
                known = length - end + i + 1
                scores = q[i].unflatten(0, (-1, group)) @ k[:, :known].transpose(1, 2) * self.config.head_dim**-0.5  # (kv_heads, group, known)
                out[i] = (scores.float().softmax(-1).to(q.dtype) @ v[:, :known]).flatten(0, 1)
        return out

    @staticmethod
    def refusal(model, cache) -> str | None:
        return None


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def refuse(name: str, reason: str | None) -> None:
    """ArgumentError if there is a reason why this rung cannot run."""
    if reason is not None:
        raise ArgumentError(f"Engine: runner {name!r} {reason}")
