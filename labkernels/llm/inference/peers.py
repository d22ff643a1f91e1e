"""What the engine is measured beside: a plain module in gpt-fast's style under torch.compile, and Hugging Face's static cache.

Notable:
- the module is gpt-fast's idea in this package's model: a static cache, one compiled function for a token whose result is the next one's input,
  the token's index on the GPU, CUDA graphs by mode="reduce-overhead". https://github.com/pytorch-labs/gpt-fast
- Hugging Face's model goes through the same loop, on one StaticCache that is kept. Its own `generate` makes a cache for each call: it compiles
  anew for a longer one, which takes twenty seconds, records CUDA graphs anew in each call, and prepares each step in Python
- both have the size of their cache from the start, so that short calls compile all that a long one runs
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from labkernels.llm.config import ModelConfig

REDUCE_OVERHEAD = {"mode": "reduce-overhead"}


class PlainDecoder(nn.Module):
    """A Transformer's weights, computed by PyTorch alone; keys and values in a static cache, (batch, kv_heads, max_seq, head_dim) for each layer.

    A tensor for each: of one for all layers the compiler copies the whole with each layer's new row, 1.8 ms a token at 8192 tokens.
    """

    def __init__(self, model, batch: int, max_seq: int):
        super().__init__()
        self.model, self.config = model, model.config
        c, weight = model.config, model.embedding.weight
        shape = (batch, c.num_kv_heads, max_seq, c.head_dim)
        for name in (f"{which}{index}" for which in "kv" for index in range(c.num_layers)):
            self.register_buffer(name, torch.zeros(shape, dtype=weight.dtype, device=weight.device), persistent=False)
        self.register_buffer("mask", torch.ones(max_seq, max_seq, dtype=torch.bool, device=weight.device).tril(), persistent=False)
        self.register_buffer("turns", model.angles[:max_seq].to(weight.dtype), persistent=False)

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, whole: bool = False) -> torch.Tensor:
        """tokens (batch, n), positions (n,) to the next token of each, (batch, 1). `whole`: the tokens are all that there is, as in a prompt."""
        c = self.config
        cos, sin = self.turns[positions].chunk(2, dim=-1)  # (n, head_dim / 2)
        mask = self.mask[None, None, positions]
        x = F.embedding(tokens, self.model.embedding.weight)
        for index, block in enumerate(self.model.blocks):
            normed = F.rms_norm(x, x.shape[-1:], block.attention_norm.weight, c.norm_eps)
            qkv = F.linear(normed, block.attention.qkv_proj.weight).unflatten(-1, (-1, c.head_dim)).transpose(1, 2)
            q, k, v = qkv.split([c.num_heads, c.num_kv_heads, c.num_kv_heads], dim=1)  # (batch, heads, n, head_dim)
            q, k = _turn(q, cos, sin), _turn(k, cos, sin)
            keys, values = getattr(self, f"k{index}"), getattr(self, f"v{index}")
            keys.index_copy_(2, positions, k)
            values.index_copy_(2, positions, v)
            grouped = c.num_heads != c.num_kv_heads
            if whole:
                out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
            else:
                out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=grouped)
            x = x + F.linear(out.transpose(1, 2).flatten(2), block.attention.out_proj.weight)
            normed = F.rms_norm(x, x.shape[-1:], block.ffn_norm.weight, c.norm_eps)
            gate, up = F.linear(normed, block.ffn.gate_up_proj.weight).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, block.ffn.down_proj.weight)
        x = F.rms_norm(x[:, -1:], x.shape[-1:], self.model.norm.weight, c.norm_eps)
        return F.linear(x, self.model.head_weight).argmax(-1)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class CompiledPeer:
    """`generate(prompts, new)` of one shape with a compiled pass over the prompt and a compiled step; mode "reduce-overhead" or "max-autotune"."""

    def __init__(self, model, batch: int, max_seq: int, mode: str | None = "reduce-overhead"):
        self.decoder = PlainDecoder(model, batch, max_seq).eval()
        self.step = self.prefill = torch.compile(self.decoder, mode=mode, fullgraph=True, dynamic=False) if mode else self.decoder

    @torch.no_grad()
    def generate(self, prompts: torch.Tensor, new: int) -> torch.Tensor:
        """prompts (batch, n) to (batch, new) tokens."""
        device, n = prompts.device, prompts.shape[1]
        token = self.prefill(prompts, torch.arange(n, device=device), whole=True)
        return _one_by_one(self.step, token, n, new)


def _one_by_one(step: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], token: torch.Tensor, n: int, new: int) -> torch.Tensor:
    """`token` (batch, 1), which comes after `n` others, and what follows it by `step`: (batch, new)."""
    drawn, position = [token.clone()], torch.tensor([n], device=token.device)  # a CUDA graph's own result is written over by the next
    for _ in range(new - 1):
        drawn.append(step(drawn[-1], position).clone())
        position += 1
    return torch.cat(drawn, dim=1)


class HuggingFacePeer:
    """transformers' Llama of this shape with random weights of its own, its static cache, and a compiled step. Its pass over the prompt is eager."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device, max_seq: int, how: dict[str, str] | None = REDUCE_OVERHEAD):
        """how: torch.compile's options; None: nothing is compiled."""
        from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

        from labkernels.llm.pretrained import config_to_hugging_face

        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                self.model = LlamaForCausalLM(LlamaConfig(**config_to_hugging_face(config))).eval()
        finally:
            torch.set_default_dtype(before)
        self.cache = StaticCache(config=self.model.config, max_cache_len=max_seq)
        self.step = torch.compile(self.next_token, fullgraph=True, dynamic=False, **how) if how else self.next_token

    def next_token(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """tokens (batch, n) at positions (n,) to the next token of each, (batch, 1); the greedy choice is part of the graph."""
        inputs = {"position_ids": positions[None], "past_key_values": self.cache, "use_cache": True, "logits_to_keep": 1}
        return self.model(tokens, **inputs).logits.argmax(-1)

    @torch.no_grad()
    def generate(self, prompts: torch.Tensor, new: int) -> torch.Tensor:
        """prompts (batch, n) to (batch, new) tokens."""
        n = prompts.shape[1]
        self.cache.reset()
        return _one_by_one(self.step, self.next_token(prompts, torch.arange(n, device=prompts.device)), n, new)
