"""Attention, forward: of whole batches, and of sequences packed one after the other."""

import torch

from labkernels.errors import ArgumentError

Window = tuple[int | None, int | None]


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool = False,
    scale: float | None = None,
    *,
    window: Window | None = None,
    mask: torch.Tensor | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """softmax(q k^T * scale + mask) v, by the fastest variant that accepts the inputs.

    q (batch, heads, seq_len, head_dim), k and v (batch, kv_heads, kv_len, head_dim), all of one dtype (float32, bfloat16 or float16), on one
    device, contiguous or not; heads must be a multiple of kv_heads. Returns the shape and dtype of q. `scale` is 1 / sqrt(head_dim) unless
    given.

    What a query sees: query i stands at key p = i + kv_len - seq_len (aligned bottom right). `causal` shows it the keys up to p; `window` =
    (left, right) the keys p - left to p + right, None for no bound; `mask`, broadcastable to (batch, heads, seq_len, kv_len), those where it
    is true if it is bool, or else (float32, or q's dtype) is added to the scaled scores. All given conditions hold together. A query that
    sees no key gets zeros. NaN and inf in q, and in the keys and values that a query sees, make its result what they make of the formula;
    whether those in hidden ones do is up to the variant, as it is up to PyTorch's backends.

    With `return_lse` also the log-sum-exp of each query's scores, (batch, heads, seq_len) float32, -inf for one that sees no key; it carries no
    gradient. q, k and v get theirs, a mask does not. Where a gradient is wanted, under torch.compile and under autocast this is the operator
    `torch.ops.labkernels.attention`. Raises ArgumentError that names the wrong input.
    """
    from labkernels.attention.op import OP, window_problem
    from labkernels.torch_extension import goes_through_torch

    if goes_through_torch(q, k, v, mask):
        if window_wrong := window_problem(window):
            raise ArgumentError(f"attention: {window_wrong}")
        found = torch.ops.labkernels.attention(q, k, v, causal, scale, *(window or (None, None)), mask)
        return found if return_lse else found[0]
    given = {"window": window, "mask": mask, "return_lse": return_lse or None}
    options = {name: value for name, value in given.items() if value is not None}
    return OP.run(q=q, k=k, v=v, causal=causal, scale=scale, **options)


def attention_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    causal: bool = False,
    scale: float | None = None,
    *,
    window: Window | None = None,
    return_lse: bool = False,
    max_seqlen_q: int | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention within each of several sequences that lie one after the other, without padding.

    q (total_q, heads, head_dim), k and v (total_k, kv_heads, head_dim). Sequence b has the queries cu_seqlens_q[b] to cu_seqlens_q[b + 1] - 1
    and the keys cu_seqlens_k[b] to cu_seqlens_k[b + 1] - 1; both tensors are int32, batch + 1 long, on q's device, and begin with 0.
    `max_seqlen_q` is the length of the longest sequence of queries or more; not given, it is read from cu_seqlens_q, for which a GPU has to
    be waited for. Everything else as in `attention`, for each sequence by itself. Returns the shape and dtype of q; with `return_lse` also the
    log-sum-exp, (heads, total_q) float32. Forward only.
    """
    from labkernels.attention.varlen import OP

    given = {"window": window, "return_lse": return_lse or None, "max_seqlen_q": max_seqlen_q}
    options = {name: value for name, value in given.items() if value is not None}
    return OP.run(q=q, k=k, v=v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, causal=causal, scale=scale, **options)
