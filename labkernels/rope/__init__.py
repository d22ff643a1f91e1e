"""Rotary position embedding: of queries and keys, and fused with the bias before it and the write into the KV cache after it."""

import torch

from labkernels.rope.angles import rope_frequencies, rope_table

__all__ = ["qkv_rope_cache", "rope", "rope_frequencies", "rope_table"]


def rope(
    q: torch.Tensor,
    k: torch.Tensor,
    angles: torch.Tensor,
    positions: torch.Tensor | None = None,
    interleaved: bool = False,
    inverse: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k with their pairs turned by position, in one launch, by the fastest variant that accepts the inputs.

    q (batch, heads, seq, head_dim) and k (batch, kv_heads, seq, head_dim), float32, bfloat16 or float16, any strides; the results are laid out
    as they are. `angles` are `rope_frequencies(rotary_dim, ...)`, float32 (rotary_dim / 2,), or a table `rope_table(frequencies, max_positions)`;
    elements beyond rotary_dim pass through. `positions` (seq,) or (batch, seq), int32 or int64, are 0, 1, 2 ... if not given; one that a table
    does not have gives NaN. Pairs are (i, i + rotary_dim / 2), as Hugging Face's Llama has them, or neighbours if `interleaved`. `inverse` turns
    back. Sines are float32 and right to 1e-6 at any position below 2^24, results are rounded once.
    Differentiable in q and k; under torch.compile it is `torch.ops.labkernels.rope`. Raises ArgumentError that names the wrong input.
    Source: Su et al., RoFormer, arXiv:2104.09864.
    """
    from labkernels.elementwise import _through_torch
    from labkernels.rope.rope_op import OP

    if _through_torch(q, k):
        return torch.ops.labkernels.rope(q, k, angles, positions, interleaved, inverse)
    return OP.run(q=q, k=k, angles=angles, positions=positions, interleaved=interleaved, inverse=inverse)


def qkv_rope_cache(
    qkv: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor],
    angles: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    bias: torch.Tensor | None = None,
    interleaved: bool = False,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Bias, RoPE and the write into the KV cache in one launch: returns q, turned, (tokens, heads, head_dim); changes the cache in place.

    qkv (tokens, (heads + 2 kv_heads) head_dim) is the packed projection: all heads of q, then of k, then of v; bias one number a column.
    cache = (k, v), each (batch, kv_heads, max_seq, head_dim) or paged (pages, kv_heads, page_size, head_dim), of qkv's dtype, or int8 or
    float8_e4m3fn: then k_scale and v_scale, float32 of the cache's shape without head_dim, are written, too, as cache_append does, and heads and what
    is turned of them must be of a multiple of 16 elements (float32: 8), on multiples of 16 bytes. Token i goes to slots[i] = page * page_size +
    offset, int64, nowhere if negative (see labkernels.kvcache.layout; no two tokens to one slot).
    positions (tokens,) int32 or int64; `angles` and `interleaved` as for `rope`. Forward only; under torch.compile it is
    `torch.ops.labkernels.qkv_rope_cache`. Raises ArgumentError that names the wrong input.
    """
    import labkernels.torch_extension  # noqa: F401  defines the operator
    from labkernels.rope.qkv_rope_cache_op import OP

    if torch.compiler.is_compiling():
        return torch.ops.labkernels.qkv_rope_cache(qkv, *cache, angles, positions, slots, bias, interleaved, k_scale, v_scale)
    options = {"bias": bias, "interleaved": interleaved, "k_scale": k_scale, "v_scale": v_scale}
    return OP.run(qkv=qkv, cache=cache, angles=angles, positions=positions, slots=slots, **options)[0][0]
