"""What `qkv_rope_cache` does in one launch, done by rope and cache_append: for comparisons bit for bit."""

import torch

from labkernels import functional as lk


def separately(qkv, cache, angles, positions, slots, bias=None, interleaved=False, out=None, early=False) -> torch.Tensor:
    """As `bytes_written` (labkernels/rope/qkv_rope_cache_variants.py), without a bias; `out` and `early` are not looked at."""
    k_cache, v_cache, *scales = cache
    kv_heads, head_dim = k_cache.shape[1], k_cache.shape[3]
    q, k, v = qkv.unflatten(1, (-1, head_dim)).split([qkv.shape[1] // head_dim - 2 * kv_heads, kv_heads, kv_heads], dim=1)
    q, k = lk.rope(q.transpose(0, 1)[None], k.transpose(0, 1)[None], angles, positions, interleaved)
    lk.cache_append(k[0].transpose(0, 1), v, k_cache, v_cache, slots, *scales)
    return q[0].transpose(0, 1).contiguous()
