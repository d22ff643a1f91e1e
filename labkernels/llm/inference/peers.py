"""What the engine is measured beside: a plain module in gpt-fast's style under torch.compile, and Hugging Face's static cache.

Notable: the module is gpt-fast's idea in this package's model: a static cache, one compiled function for a token whose result is the next one's input,
the token's index on the GPU, CUDA graphs by mode="reduce-overhead". https://github.com/pytorch-labs/gpt-fast
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from labkernels.llm.config import ModelConfig


class PlainDecoder(nn.Module):
    """A Transformer's weights, computed by PyTorch alone, with keys and values in a static cache (layers, batch, kv_heads, max_seq, head_dim)."""

    def __init__(self, model, batch: int, max_seq: int):
        super().__init__()
        self.model, self.config = model, model.config
        c, weight = model.config, model.embedding.weight
        shape = (c.num_layers, batch, c.num_kv_heads, max_seq, c.head_dim)
        self.register_buffer("k", torch.zeros(shape, dtype=weight.dtype, device=weight.device), persistent=False)
        self.register_buffer("v", torch.zeros(shape, dtype=weight.dtype, device=weight.device), persistent=False)
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
            self.k[index].index_copy_(2, positions, k)
            self.v[index].index_copy_(2, positions, v)
            grouped = c.num_heads != c.num_kv_heads
            if whole:
                out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
            else:
                out = F.scaled_dot_product_attention(q, self.k[index], self.v[index], attn_mask=mask, enable_gqa=grouped)
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
    """`generate(prompts, new)` with a compiled step; mode "reduce-overhead" or "max-autotune"."""

    def __init__(self, model, batch: int, max_seq: int, mode: str | None = "reduce-overhead"):
        self.decoder = PlainDecoder(model, batch, max_seq).eval()
        self.step = torch.compile(self.decoder, mode=mode, fullgraph=True) if mode else self.decoder
        self.prefill = torch.compile(self.decoder, fullgraph=True) if mode else self.decoder

    @torch.no_grad()
    def generate(self, prompts: torch.Tensor, new: int) -> torch.Tensor:
        """prompts (batch, n) to (batch, new) tokens."""
        device, n = prompts.device, prompts.shape[1]
        token = self.prefill(prompts, torch.arange(n, device=device), whole=True)
        drawn, position = [token.clone()], torch.tensor([n], device=device)
        for _ in range(new - 1):
            token = self.step(token, position).clone()
            drawn.append(token)
            position += 1
        return torch.cat(drawn, dim=1)


class HuggingFacePeer:
    """transformers' Llama of this shape with random weights of its own, which generates with its static cache and compiles itself on a GPU."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device):
        from transformers import LlamaConfig, LlamaForCausalLM

        from labkernels.llm.pretrained import config_to_hugging_face

        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                self.model = LlamaForCausalLM(LlamaConfig(**config_to_hugging_face(config))).eval()
        finally:
            torch.set_default_dtype(before)

    @torch.no_grad()
    def generate(self, prompts: torch.Tensor, new: int) -> torch.Tensor:
        """prompts (batch, n) to (batch, new) tokens."""
        greedy = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new, "cache_implementation": "static", "pad_token_id": 0}
        return self.model.generate(prompts, attention_mask=torch.ones_like(prompts), **greedy)[:, prompts.shape[1] :]
