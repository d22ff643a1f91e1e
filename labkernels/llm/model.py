"""A decoder-only transformer: the whole model, top to bottom.

Notable:
- pre-norm with RMSNorm, rotary position embedding with Llama 3's scaling, grouped-query attention, SwiGLU or GELU, optional QK-norm, tied or own head
- queries, keys and values are one product, gate and up are one product; no biases
- each operation runs on PyTorch or on this package's kernels (kernels.py), switchable at any time
- a block hands on its result and the residual stream apart, so that their sum is fused into the next norm
- documents packed one after the other do not see each other, and positions begin again (`cu_seqlens`)
- a block's activations can be computed again in the backward pass (`checkpointing`)
- the loss never holds the logits of all tokens with kernels["loss"] = "labkernels"
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import nn

from labkernels.errors import ArgumentError
from labkernels.llm import kernels as run
from labkernels.llm.config import ModelConfig
from labkernels.llm.pretrained import MAX_SHARD_BYTES, load, save
from labkernels.llm.recompute import expect_mode, run_block
from labkernels.rope import rope_frequencies, rope_table


class Context(NamedTuple):
    """What all blocks of one forward pass share."""

    kernels: dict[str, str]
    angles: torch.Tensor  # (max_seq_len, head_dim) cosines, then sines
    positions: torch.Tensor | None  # ([batch,] seq); None: 0, 1, 2 ...
    cu_seqlens: torch.Tensor | None  # (documents + 1,) int32


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight; with a residual, of the sum, which it returns, too."""

    def __init__(self, dim: int, eps: float, **where):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, **where))

    def forward(self, x: torch.Tensor, kernel: str, residual: torch.Tensor | None = None):
        if residual is None:
            return run.rms_norm(kernel, x, self.weight, self.eps)
        return run.add_rms_norm(kernel, x, residual, self.weight, self.eps)


class Attention(nn.Module):
    """Causal self-attention, num_kv_heads of keys and values shared by groups of query heads."""

    def __init__(self, config: ModelConfig, **where):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.qkv_proj = nn.Linear(config.embed_dim, config.qkv_dim, bias=False, **where)
        self.out_proj = nn.Linear(config.num_heads * config.head_dim, config.embed_dim, bias=False, **where)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps, **where)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps, **where)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        kernels, heads, kv_heads = context.kernels, self.num_heads, self.num_kv_heads
        qkv = run.linear(kernels["linear"], x, self.qkv_proj)
        if kernels["rope"] == kernels["attention"] == "labkernels" and not self.qk_norm:
            joined = run.rope_attention(qkv, context.angles, context.positions, context.cu_seqlens, heads, kv_heads)
            return run.linear(kernels["linear"], joined, self.out_proj)
        by_head = qkv.unflatten(-1, (heads + 2 * kv_heads, self.head_dim))
        q, k, v = by_head.split([heads, kv_heads, kv_heads], dim=2)  # views, (batch, seq, heads, head_dim)
        if self.qk_norm:
            q, k = self.q_norm(q, kernels["norm"]), self.k_norm(k, kernels["norm"])
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (batch, heads, seq, head_dim)
        q, k = run.rope(kernels["rope"], q, k, context.angles, context.positions)
        out = run.attention(kernels["attention"], q, k, v, context.cu_seqlens)
        return run.linear(kernels["linear"], out.transpose(1, 2).flatten(2), self.out_proj)


class FeedForward(nn.Module):
    """Two products with GELU between them, or with silu(gate) * up, both from one product."""

    def __init__(self, config: ModelConfig, **where):
        super().__init__()
        self.activation = config.activation
        if config.gated:
            self.gate_up_proj = nn.Linear(config.embed_dim, 2 * config.ffn_dim, bias=False, **where)
        else:
            self.up_proj = nn.Linear(config.embed_dim, config.ffn_dim, bias=False, **where)
        self.down_proj = nn.Linear(config.ffn_dim, config.embed_dim, bias=False, **where)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        first = self.gate_up_proj if self.activation == "swiglu" else self.up_proj
        return run.ffn(context.kernels["ffn"], x, first, self.down_proj, self.activation)


class Block(nn.Module):
    """x and residual, whose sum is the stream, to the FFN's result and the stream before it."""

    def __init__(self, config: ModelConfig, **where):
        super().__init__()
        self.attention_norm = RMSNorm(config.embed_dim, config.norm_eps, **where)
        self.attention = Attention(config, **where)
        self.ffn_norm = RMSNorm(config.embed_dim, config.norm_eps, **where)
        self.ffn = FeedForward(config, **where)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        kernel = context.kernels["norm"]
        if residual is None:  # the first block
            x, residual = self.attention_norm(x, kernel), x
        else:
            x, residual = self.attention_norm(x, kernel, residual)
        x, residual = self.ffn_norm(self.attention(x, context), kernel, residual)
        return self.ffn(x, context), residual


class Transformer(nn.Module):
    """The model of a `ModelConfig`, with random weights.

        model = Transformer(ModelConfig.preset("10m"), kernels="labkernels")
        logits = model(tokens)                           # (batch, seq) int64 -> (batch, seq, vocab_size)
        loss = model(tokens, targets)                    # one float32 number, ready for backward()

    `kernels`: "torch", "labkernels", or a mapping of names in `labkernels.llm.kernels.OPERATIONS` to them, the others "torch". Parameters, by their
    names in state_dict(), all weights of layers without bias, rows first:
        embedding.weight (vocab_size, embed_dim), norm.weight (embed_dim,), head.weight (vocab_size, embed_dim), absent if tied; in blocks.I:
        attention_norm.weight, ffn_norm.weight (embed_dim,); attention.q_norm.weight, attention.k_norm.weight (head_dim,) with qk_norm
        attention.qkv_proj.weight ((num_heads + 2 num_kv_heads) head_dim, embed_dim), attention.out_proj.weight (embed_dim, num_heads head_dim)
        ffn.gate_up_proj.weight (2 ffn_dim, embed_dim), all gates, then all ups (ffn.up_proj.weight where not gated), ffn.down_proj.weight
    Raises ArgumentError that names the argument.
    """

    def __init__(
        self,
        config: ModelConfig,
        kernels: str | Mapping[str, str] = "torch",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if not isinstance(config, ModelConfig):
            raise ArgumentError(f"Transformer: config is a {type(config).__name__}; it must be a ModelConfig")
        self.config, self.kernels, self.checkpointing = config, kernels, "none"
        where = {"device": device, "dtype": dtype}
        self.embedding = nn.Embedding(config.vocab_size, config.embed_dim, **where)
        self.blocks = nn.ModuleList(Block(config, **where) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.embed_dim, config.norm_eps, **where)
        self.head = None if config.tie_embeddings else nn.Linear(config.embed_dim, config.vocab_size, bias=False, **where)
        self.register_buffer("angles", self._angles(device), persistent=False)
        self.reset_parameters()

    @property
    def kernels(self) -> dict[str, str]:
        """What each operation runs on. Can be set, as in the constructor."""
        return self._kernels

    @kernels.setter
    def kernels(self, kernels: str | Mapping[str, str]) -> None:
        self._kernels = run.resolve(kernels)

    @property
    def checkpointing(self) -> str:
        """What blocks compute again in the backward pass: "none", "selective" or "full" (recompute.py). Can be set."""
        return self._checkpointing

    @checkpointing.setter
    def checkpointing(self, mode: str) -> None:
        self._checkpointing = expect_mode(mode)

    @property
    def head_weight(self) -> torch.Tensor:
        """(vocab_size, embed_dim): of the head, or the embedding's where they are tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def reset_parameters(self) -> None:
        """Normal with 0.02, the projections back into the stream with 0.02 / sqrt(2 num_layers), as GPT-2 has it; norms are ones."""
        for name, weight in self.named_parameters():
            self._reset(name, weight)

    def _reset(self, name: str, weight: torch.Tensor) -> None:
        if name.endswith("norm.weight"):
            nn.init.ones_(weight)
        else:
            back = name.endswith(("out_proj.weight", "down_proj.weight"))
            nn.init.normal_(weight, std=0.02 / (2 * self.config.num_layers) ** 0.5 if back else 0.02)

    def make_real(self, device: torch.device | str, then: Callable[[str, Block], None] = lambda name, block: None) -> None:
        """Random weights for a model that was made on "meta", piece by piece, those of `reset_parameters`. Then(name, block) may put each block away
        before the next one is made: a model that is spread over GPUs needs to be nowhere as a whole. Of one that is real, `then` alone."""
        meta = self.embedding.weight.is_meta
        for name, piece in [(name, each) for name, each in self.named_modules() if name in ("embedding", "norm", "head") or isinstance(each, Block)]:
            if meta:
                piece.to_empty(device=device)
                for inside, weight in list(piece.named_parameters()):
                    self._reset(f"{name}.{inside}", weight)
            if isinstance(piece, Block):
                then(name, piece)
        if meta:
            self.angles = self._angles(device)

    def forward(
        self,
        tokens: torch.Tensor,
        targets: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """tokens (batch, seq) int64 to logits (batch, seq, vocab_size), or, with targets (batch, seq), to their mean cross-entropy, a float32 number.

        Targets of -100 do not count. `cu_seqlens`, int32, says where documents begin in the batch * seq tokens, rows one after the other: from 0
        to batch * seq, with every row's beginning among them; a document sees itself alone. `positions` ([batch,] seq) are 0, 1, 2 ... in each
        row or document unless given.
        """
        if targets is not None and targets.shape != tokens.shape:
            raise ArgumentError(f"Transformer: targets has shape {tuple(targets.shape)}; it must be tokens' {tuple(tokens.shape)}")
        x = self.hidden(tokens, cu_seqlens, positions)
        if targets is None:
            return nn.functional.linear(x, self.head_weight)
        return run.loss(self.kernels["loss"], x, self.head_weight, targets)

    def hidden(
        self, tokens: torch.Tensor, cu_seqlens: torch.Tensor | None = None, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(batch, seq) to what the head takes, (batch, seq, embed_dim): after the last norm."""
        if tokens.dim() != 2:
            raise ArgumentError(f"Transformer: tokens has shape {tuple(tokens.shape)}; it must be (batch, seq)")
        if tokens.dtype not in (torch.int64, torch.int32):
            raise ArgumentError(f"Transformer: tokens is {str(tokens.dtype).removeprefix('torch.')}; it must be int64")
        if cu_seqlens is not None and (cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1):
            found = f"{str(cu_seqlens.dtype).removeprefix('torch.')} of shape {tuple(cu_seqlens.shape)}"
            raise ArgumentError(f"Transformer: cu_seqlens is {found}; it must be int32 of shape (documents + 1,)")
        if positions is None and cu_seqlens is not None:
            positions = run.positions_in_documents(cu_seqlens, *tokens.shape)
        elif positions is None and tokens.shape[1] > self.config.max_seq_len:
            raise ArgumentError(f"Transformer: tokens has {tokens.shape[1]} a row; max_seq_len is {self.config.max_seq_len}")
        context = Context(self.kernels, self.angles, positions, cu_seqlens)
        x, residual = run.embedding(self.kernels["embedding"], tokens, self.embedding.weight), None
        for block in self.blocks:
            x, residual = run_block(self.checkpointing, block, x, residual, context)
        return self.norm(x, self.kernels["norm"], residual)[0]

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike,
        kernels: str | Mapping[str, str] = "torch",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Transformer:
        """The model of a Hugging Face Llama folder, its weights as the file has them unless `dtype` is given: `labkernels.llm.pretrained`."""
        return load(lambda config, dtype: cls(config, kernels, dtype=dtype), folder, device, dtype)

    def save_pretrained(self, folder: str | os.PathLike, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        """Written as a Hugging Face folder, which transformers reads."""
        save(self, folder, max_shard_bytes)

    def _angles(self, device) -> torch.Tensor:
        """Sines and cosines of every position: read, not worked out, in every step."""
        c = self.config
        return rope_table(rope_frequencies(c.head_dim, c.rope_theta, c.rope_scaling), c.max_seq_len).to(device)

    def _apply(self, fn, recurse: bool = True):
        """Moves with the layer; the angles are made anew where it is cast or comes from "meta": in 16 bits they would be wrong."""
        from_meta = self.angles.is_meta
        moved = super()._apply(fn, recurse)
        if self.angles.dtype != torch.float32 or from_meta:
            self.angles = self._angles(self.angles.device)
        return moved
