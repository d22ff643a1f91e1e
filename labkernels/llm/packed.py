"""Attention with a gradient on sequences that lie packed one after the other, as a torch operator.

    labkernels::attention_varlen(q, k, v, cu_seqlens, max_seqlen, causal, scale) -> (out, lse)        as labkernels.attention.attention_varlen
    labkernels::attention_varlen_backward(grad_out, q, k, v, out, lse, ...the same) -> (grad_q, grad_k, grad_v)

Notable: all tensors are (tokens, heads, head_dim), as the projections before and after have them, so that a batch of equal lengths goes this way, too, and
nothing is transposed in memory. `max_seqlen` bounds the longest sequence: nobody waits for the GPU to say what it is.
"""

from __future__ import annotations

import torch

from labkernels.attention import attention_varlen
from labkernels.attention_backward import attention_backward_varlen
from labkernels.torch_extension.operators import LIBRARY, _dense, define

_OPTIONS = "Tensor cu_seqlens, SymInt max_seqlen, bool causal=True, float? scale=None"
SCHEMAS = {
    "attention_varlen": f"(Tensor q, Tensor k, Tensor v, {_OPTIONS}) -> (Tensor out, Tensor lse)",
    "attention_varlen_backward": "(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    f"{_OPTIONS}) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)",
}


def forward(q, k, v, cu_seqlens, max_seqlen, causal=True, scale=None):
    ends = cu_seqlens, cu_seqlens
    return attention_varlen(_dense(q), _dense(k), _dense(v), *ends, causal, scale, return_lse=True, max_seqlen_q=max_seqlen)


def forward_fake(q, k, v, cu_seqlens, max_seqlen, causal=True, scale=None):
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


def backward(grad_out, q, k, v, out, lse, cu_seqlens, max_seqlen, causal=True, scale=None):
    ends, longest = (cu_seqlens, cu_seqlens), {"max_seqlen_q": max_seqlen, "max_seqlen_k": max_seqlen}
    deterministic = torch.are_deterministic_algorithms_enabled()
    tensors = (*map(_dense, (grad_out, q, k, v, out)), lse)
    return tuple(attention_backward_varlen(*tensors, *ends, causal, scale, deterministic=deterministic, **longest))


def backward_fake(grad_out, q, k, v, out, lse, cu_seqlens, max_seqlen, causal=True, scale=None):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (q, k, v))


def _save(ctx, inputs, output) -> None:
    q, k, v, cu_seqlens, *ctx.options = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, cu_seqlens)


def _gradient(ctx, grad, _):
    return *torch.ops.labkernels.attention_varlen_backward(grad, *ctx.saved_tensors, *ctx.options), None, None, None, None


define("attention_varlen", SCHEMAS["attention_varlen"], forward, forward_fake)
define("attention_varlen_backward", SCHEMAS["attention_varlen_backward"], backward, backward_fake)
torch.library.register_autograd("labkernels::attention_varlen", _gradient, setup_context=_save, lib=LIBRARY)
