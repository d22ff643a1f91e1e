"""What is wrong with a cache, or None: shared by the operations that read one and those that write one."""

from __future__ import annotations

import torch

from labkernels.kvcache.layout import FULL_DTYPES, LARGEST
from labkernels.operation import dtype_name

CACHE_DTYPES = (*FULL_DTYPES, *LARGEST)


def cache_problem(k, v, k_scale, v_scale) -> str | None:
    """Of k and v (pages, kv_heads, page_size, head_dim), or (batch, kv_heads, max_seq, head_dim), and the scales of a quantised cache."""
    for name, cache in (("k", k), ("v", v)):
        if cache.dim() != 4:
            return f"{name} has shape {tuple(cache.shape)}; a cache has four axes, (batch or pages, kv_heads, max_seq or page_size, head_dim)"
        if cache.dtype not in CACHE_DTYPES:
            return f"{name} is {dtype_name(cache.dtype)}; a cache is {', '.join(map(dtype_name, CACHE_DTYPES))}"
        if cache.stride(3) != 1 and cache.shape[3] > 1:
            return f"{name} has strides {cache.stride()}; the elements of a token must be neighbours in memory (stride 1)"
    if k.shape != v.shape or k.dtype != v.dtype:
        return f"k is {dtype_name(k.dtype)} {tuple(k.shape)}, v is {dtype_name(v.dtype)} {tuple(v.shape)}; both must be equal"
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if (scale is not None) != (k.dtype in LARGEST):
            return f"{name} {'is missing: a cache of' if scale is None else 'is given, but a cache of'} {dtype_name(k.dtype)} has " + (
                "one scale for each token and head" if scale is None else "none")  # fmt: skip
        if scale is not None and (scale.shape != k.shape[:3] or scale.dtype != torch.float32):
            return f"{name} is {dtype_name(scale.dtype)} {tuple(scale.shape)}; it must be float32 {tuple(k.shape[:3])}, k's shape without head_dim"
        if scale is not None and scale.stride(2) != 1 and scale.shape[2] > 1:
            return f"{name} has strides {scale.stride()}; those of neighbouring tokens must be neighbours in memory (stride 1)"
    return None


def on_one_device(**tensors: torch.Tensor | None) -> str | None:
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first = next(iter(given))
    for name, tensor in given.items():
        if tensor.device != given[first].device:
            return f"{name} is on {tensor.device}, {first} is on {given[first].device}; both must be on one device"
    return None


def table_problem(k, lengths, block_table, batch: int) -> str | None:
    """Of lengths and block table. Looks into them only where that does not make a GPU wait: on the CPU."""
    if lengths.dtype != torch.int32 or lengths.shape != (batch,) or not lengths.is_contiguous():
        return f"lengths is {dtype_name(lengths.dtype)} of shape {tuple(lengths.shape)}; it must be int32 of shape ({batch},), contiguous"
    if block_table is None:
        if k.shape[0] != batch:
            return f"k has batch {k.shape[0]}, q has {batch}; both must be equal, or a block_table be given"
        tokens = k.shape[2]
    else:
        if block_table.dtype != torch.int32 or block_table.dim() != 2 or block_table.shape[0] != batch:
            return f"block_table is {dtype_name(block_table.dtype)} of shape {tuple(block_table.shape)}; it must be int32 of shape ({batch}, max_pages)"
        if block_table.stride(1) != 1 and block_table.shape[1] > 1:
            return f"block_table has strides {block_table.stride()}; the pages of a sequence must be neighbours in memory (stride 1)"
        tokens = block_table.shape[1] * k.shape[2]
    if lengths.device.type != "cpu" or type(lengths) is not torch.Tensor or batch == 0:
        return None
    if int(lengths.min()) < 0 or int(lengths.max()) > tokens:
        return f"lengths is {lengths.tolist()}; each must be 0 to {tokens}, what there is room for"
    if block_table is not None and k.shape[2]:
        used = torch.arange(block_table.shape[1])[None] < (lengths[:, None].long() + k.shape[2] - 1) // k.shape[2]
        pages = block_table[used]
        if pages.numel() and (int(pages.min()) < 0 or int(pages.max()) >= k.shape[0]):
            return f"block_table names page {int(pages.max() if pages.max() >= k.shape[0] else pages.min())}; the cache has the pages 0 to {k.shape[0] - 1}"
    return None
