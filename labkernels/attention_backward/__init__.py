"""The gradients of attention: of whole batches, and of sequences packed one after the other."""

import torch

Window = tuple[int | None, int | None]
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def attention_backward(
    grad_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    causal: bool = False,
    scale: float | None = None,
    *,
    window: Window | None = None,
    mask: torch.Tensor | None = None,
    deterministic: bool = False,
) -> Gradients:
    """(dq, dk, dv) of attention, from the gradient of its result, by the fastest variant that accepts the inputs.

    grad_out, q and out (batch, heads, seq_len, head_dim), k and v (batch, kv_heads, kv_len, head_dim), all of one dtype (float32, bfloat16 or
    float16), on one device; lse (batch, heads, seq_len) float32. `out` and `lse` are what `attention(q, k, v, ..., return_lse=True)` gave with
    the same causal, scale, window and mask, which are explained there. Each gradient has the shape and dtype of what it is the gradient of;
    those of keys and values are summed over the heads that share them. A mask gets no gradient. A query that sees no key has a gradient
    of zeros and adds nothing to others.

    With `deterministic` the same inputs give the same bits each time; without it, the order of some float32 sums is left to chance.
    Raises ArgumentError that names the wrong input.
    """
    from labkernels.attention_backward.op import OP

    given = {"window": window, "mask": mask, "deterministic": deterministic or None}
    options = {name: value for name, value in given.items() if value is not None}
    return OP.run(grad_out=grad_out, q=q, k=k, v=v, out=out, lse=lse, causal=causal, scale=scale, **options)


def attention_backward_varlen(
    grad_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    causal: bool = False,
    scale: float | None = None,
    *,
    window: Window | None = None,
    deterministic: bool = False,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
) -> Gradients:
    """(dq, dk, dv) of `attention_varlen`: of sequences that lie one after the other, without padding.

    grad_out, q and out (total_q, heads, head_dim), k and v (total_k, kv_heads, head_dim), lse (heads, total_q) float32; cu_seqlens as in
    `attention_varlen`. `max_seqlen_q` and `max_seqlen_k` are the lengths of the longest sequences or more; not given, they are read from
    cu_seqlens, for which a GPU has to be waited for. Everything else as in `attention_backward`.
    """
    from labkernels.attention_backward.varlen import OP

    given = {"window": window, "deterministic": deterministic or None, "max_seqlen_q": max_seqlen_q, "max_seqlen_k": max_seqlen_k}
    options = {name: value for name, value in given.items() if value is not None}
    inputs = {"grad_out": grad_out, "q": q, "k": k, "v": v, "out": out, "lse": lse, "cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k}
    return OP.run(**inputs, causal=causal, scale=scale, **options)
