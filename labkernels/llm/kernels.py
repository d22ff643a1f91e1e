"""Which operation of the model runs on what: PyTorch, or the kernels of this package.

Notable: every operation is one function here with both ways beside each other, so that the model itself reads as the formula; a model's `kernels` maps
the names in OPERATIONS to "torch" or "labkernels", and can be changed at any time. Both have gradients, and both go through torch.compile(fullgraph=True).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional as F

from labkernels import functional as lk
from labkernels.errors import ArgumentError
from labkernels.llm import linear as _linear, packed as _packed_attention_operator, rope_attention as _rope_attention  # noqa: F401  define operators

OPERATIONS = {
    "embedding": "rows of the table, and its gradient",
    "norm": "RMSNorm, and the residual sum before it",
    "rope": "rotary position embedding of queries and keys",
    "attention": "causal attention, within documents where they are packed",
    "linear": "the projections to queries, keys and values, and back",
    "ffn": "the feed-forward network: its products and its activation",
    "loss": "the head and cross-entropy",
}
LOSS_BYTES = 256 * 2**20  # of a chunk's logits: large enough for matmuls at full speed, and few additions to the head's gradient
CHOICES = ("torch", "labkernels")


def resolve(kernels: str | Mapping[str, str]) -> dict[str, str]:
    """What each operation runs on. A string stands for all; a mapping names some, the others are "torch"."""
    if isinstance(kernels, str):
        kernels = dict.fromkeys(OPERATIONS, kernels)
    for name, choice in kernels.items():
        if name not in OPERATIONS:
            raise ArgumentError(f"Transformer: kernels has {name!r}; the operations are {', '.join(map(repr, OPERATIONS))}")
        if choice not in CHOICES:
            raise ArgumentError(f"Transformer: kernels[{name!r}] is {choice!r}; it must be one of {', '.join(map(repr, CHOICES))}")
    return {name: kernels.get(name, "torch") for name in OPERATIONS}


def embedding(kernel: str, tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(batch, seq) -> (batch, seq, embed_dim)"""
    return lk.embedding(tokens, weight) if kernel == "labkernels" else F.embedding(tokens, weight)


def rms_norm(kernel: str, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    if kernel == "labkernels":
        return lk.rms_norm(x, weight, eps)
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def add_rms_norm(
    kernel: str, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of x + residual, and the sum."""
    if kernel == "labkernels":
        return lk.add_rms_norm(x.to(residual.dtype), residual, weight, eps=eps)  # under autocast the stream is float32, and what is added is not
    total = x + residual
    return F.rms_norm(total, total.shape[-1:], weight, eps), total


def rope(
    kernel: str, q: torch.Tensor, k: torch.Tensor, angles: torch.Tensor, positions: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k (batch, heads, seq, head_dim), turned. `angles`: cosines, then sines, a row a position, float32 (max_seq_len, head_dim)."""
    if kernel == "labkernels":
        return lk.rope(q, k, angles, positions)
    rows = angles[: q.shape[2]] if positions is None else angles[positions]  # ([batch,] seq, head_dim)
    cos, sin = (rows if rows.dim() == 2 else rows[:, None]).chunk(2, dim=-1)
    return _turn(q, cos, sin), _turn(k, cos, sin)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def attention(
    kernel: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor | None
) -> torch.Tensor:
    """Causal attention; with `cu_seqlens`, int32, where documents begin in batch * seq tokens, within each document. Shapes as in SDPA."""
    if kernel == "labkernels":
        return _our_attention(q, k, v, cu_seqlens)
    if cu_seqlens is not None:
        return _packed_attention(q, k, v, cu_seqlens)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)


def _our_attention(q, k, v, cu_seqlens):
    """In 16 bits by the kernels for packed sequences in any case: what they read and write lies as the projections have it."""
    batch, heads, seq, head_dim = q.shape
    if cu_seqlens is None and q.dtype == torch.float32:
        return lk.attention(q, k, v, causal=True)
    if cu_seqlens is None:
        cu_seqlens = torch.arange(0, batch * seq + 1, seq, dtype=torch.int32, device=q.device)
    out, _ = torch.ops.labkernels.attention_varlen(*_packed(q, k, v), cu_seqlens, seq)
    return out.view(batch, seq, heads, head_dim).transpose(1, 2)


def _packed_attention(q, k, v, cu_seqlens):
    batch, heads, seq, head_dim = q.shape
    if q.is_cuda and q.dtype != torch.float32:
        # what torch.nn.attention.varlen calls, whose options change from version to version
        out = torch.ops.aten._flash_attention_forward(*_packed(q, k, v), cu_seqlens, cu_seqlens, seq, seq, 0.0, True, False)[0]
        return out.view(batch, seq, heads, head_dim).transpose(1, 2)
    document = document_of(cu_seqlens, batch * seq).view(batch, 1, seq)
    mask = (document[..., :, None] == document[..., None, :]).tril()  # (batch, 1, seq, seq)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=heads != k.shape[1])


def _packed(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Each (batch, heads, seq, head_dim) as (tokens, heads, head_dim)."""
    return [tensor.transpose(1, 2).flatten(0, 1) for tensor in tensors]


def rope_attention(
    qkv: torch.Tensor, angles: torch.Tensor, positions: torch.Tensor | None, cu_seqlens: torch.Tensor | None, heads: int, kv_heads: int
) -> torch.Tensor:
    """Both at once, where both are ours: the stacked projection (batch, seq, qkv_dim) to the joined heads (batch, seq, heads head_dim)."""
    return torch.ops.labkernels.rope_attention(qkv, angles, positions, cu_seqlens, heads, kv_heads)[0]


def linear(kernel: str, x: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    """(..., in) -> (..., out)"""
    if kernel != "labkernels" or not _plain(layer):
        return layer(x)
    return torch.ops.labkernels.linear(*_linear.cast_for_autocast(x, layer.weight))


def ffn(kernel: str, x: torch.Tensor, first: torch.nn.Module, down: torch.nn.Module, activation: str) -> torch.Tensor:
    """`first` is gate_up_proj (all gates, then all ups) of "swiglu", else up_proj."""
    if kernel == "labkernels" and _plain(first, down):
        return lk.ffn(x, first.weight, down.weight, activation=activation)
    hidden = first(x)
    if activation == "swiglu":
        gate, up = hidden.chunk(2, dim=-1)
        return down(F.silu(gate) * up)
    return down(F.gelu(hidden, approximate="tanh" if activation == "gelu_tanh" else "none"))


def _plain(*layers: torch.nn.Module) -> bool:
    """Are these linear layers as the model has made them? What has taken the place of one, quantised or in fp8, multiplies in its own way."""
    return all(type(layer) is torch.nn.Linear for layer in layers)


def loss(kernel: str, x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of x (batch, seq, embed_dim) against targets (batch, seq), float32; -100 does not count."""
    if kernel == "labkernels":
        return lk.linear_cross_entropy(x, weight, targets, chunk_tokens=chunk_tokens(weight.shape[0], x.dtype))
    logits = F.linear(x, weight).float()
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def chunk_tokens(vocab_size: int, dtype: torch.dtype) -> int:
    """The tokens whose logits are there at a time with kernels["loss"] = "labkernels": as many as LOSS_BYTES hold, in steps of 256."""
    return max(256, LOSS_BYTES // (vocab_size * dtype.itemsize) // 256 * 256)


def document_of(cu_seqlens: torch.Tensor, tokens: int) -> torch.Tensor:
    """The number of each token's document, (tokens,). Documents without tokens, such as repeated ends that pad cu_seqlens, do no harm."""
    return torch.searchsorted(cu_seqlens, torch.arange(tokens, device=cu_seqlens.device, dtype=cu_seqlens.dtype), right=True) - 1


def positions_in_documents(cu_seqlens: torch.Tensor, batch: int, seq: int) -> torch.Tensor:
    """Positions that begin again with each document, (batch, seq) int64."""
    index = torch.arange(batch * seq, device=cu_seqlens.device)
    return (index - cu_seqlens[document_of(cu_seqlens, batch * seq)]).view(batch, seq)
