"""Masks of attention as tensors, and the softmax of scores that are scaled and masked on the way."""

import torch

Window = tuple[int | None, int | None]


def attention_mask(
    lengths: torch.Tensor,
    seq_len: int,
    kv_len: int,
    causal: bool = False,
    window: Window | None = None,
    dtype: torch.dtype = torch.bool,
    hidden: float = -torch.inf,
) -> torch.Tensor:
    """Padding, causal mask and window as one mask (batch, 1, seq_len, kv_len), by the fastest variant.

    lengths (batch,) int64: how many keys each sequence has; those beyond are padding. `causal` and `window` (left, right) as in
    `lk.functional.attention`, aligned bottom right: the last query stands at the last key. Of dtype bool: true where a key may be seen; of
    float32, bfloat16 or float16: 0 there and `hidden` elsewhere, to be added to scores. Attention needs no such mask for what its own
    arguments say; this is for what takes nothing else. Under torch.compile it is `torch.ops.labkernels.attention_mask`. Raises ArgumentError.
    """
    import labkernels.torch_extension  # noqa: F401  defines the operator
    from labkernels.masks.attention_mask_op import OP

    if torch.compiler.is_compiling():
        return torch.ops.labkernels.attention_mask(lengths, seq_len, kv_len, causal, *(window or (None, None)), dtype, hidden)
    return OP.run(lengths=lengths, seq_len=seq_len, kv_len=kv_len, causal=causal, window=window, dtype=dtype, hidden=hidden)


def masked_softmax(x: torch.Tensor, mask: torch.Tensor | None = None, scale: float = 1.0, causal: bool = False) -> torch.Tensor:
    """softmax(scale * x + mask) over the keys, by the fastest variant that accepts the inputs.

    x (batch, heads, queries, keys) float32, bfloat16 or float16. `mask` broadcastable to that: bool (true: may be seen), or float32 or of x's
    dtype, added. `causal` hides later keys, aligned bottom right. A row of which nothing may be seen becomes zeros. Returns a new contiguous
    tensor. Differentiable in x; under torch.compile it is `torch.ops.labkernels.masked_softmax`. Raises ArgumentError.
    """
    from labkernels.elementwise import _through_torch
    from labkernels.masks.masked_softmax_op import OP

    if _through_torch(x, mask):
        return torch.ops.labkernels.masked_softmax(x, mask, scale, causal)
    return OP.run(x=x, mask=mask, scale=scale, causal=causal)
