"""Packed sequences as the kernels see them: one batch of long heads, and tensors that say where each sequence begins."""

from __future__ import annotations

import torch

from labkernels.attention.varlen import longest

Packed = tuple[torch.Tensor, torch.Tensor, int, int]  # (cu_seqlens_q, cu_seqlens_k, and the longest sequence's length of each)


def packed_of(cu_seqlens_q, cu_seqlens_k, max_seqlen_q: int | None, max_seqlen_k: int | None) -> Packed:
    """The longest lengths are read from the tensors where they are not given."""
    longest_q = longest(cu_seqlens_q) if max_seqlen_q is None else max_seqlen_q
    return cu_seqlens_q, cu_seqlens_k, longest_q, longest(cu_seqlens_k) if max_seqlen_k is None else max_seqlen_k


def gradients_like(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """New contiguous tensors of these shapes."""
    return tuple(torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in tensors)


def as_heads(packed: Packed | None, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Views (batch, heads, seq, head_dim); packed ones (tokens, heads, head_dim) as one batch, whose stride is not to be used."""
    return tensors if packed is None else tuple(tensor.transpose(0, 1)[None] for tensor in tensors)


def varlen(backward):
    """The function on packed sequences that `backward`, with its keyword `packed`, makes."""

    def attention_backward_varlen(
        grad_out, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, causal=False, scale=None, *, window=None, deterministic=False,
        max_seqlen_q=None, max_seqlen_k=None,
    ):  # fmt: skip
        packed = packed_of(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return backward(grad_out, q, k, v, out, lse, causal, scale, window=window, deterministic=deterministic, packed=packed)

    return attention_backward_varlen
