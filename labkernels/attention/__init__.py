"""Attention, forward."""

import torch


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = False, scale: float | None = None
) -> torch.Tensor:
    """softmax(q k^T * scale) v, by the fastest variant that accepts the inputs.

    q (batch, heads, seq_len, head_dim), k and v (batch, kv_heads, kv_len, head_dim), all float32 or all bfloat16, on one device, contiguous
    or not; heads must be a multiple of kv_heads. Returns the shape and dtype of q. `causal` lets query i see keys 0 to
    i + kv_len - seq_len (aligned bottom right); `scale` is 1 / sqrt(head_dim) unless given.
    Raises ArgumentError that names the wrong input. Forward only.
    """
    from labkernels.attention.op import OP

    return OP.run(q=q, k=k, v=v, causal=causal, scale=scale)
