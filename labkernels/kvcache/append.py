"""Appending tokens to a cache: what is wrong with the inputs, and the launch."""

from __future__ import annotations

import struct
from pathlib import Path

import torch

from labkernels.cuda.settled import wrote
from labkernels.cuda.variants import ceil_div, kernel, vector_width
from labkernels.errors import ArgumentError
from labkernels.kvcache.checks import cache_problem, on_one_device
from labkernels.kvcache.layout import FULL_DTYPES, LARGEST
from labkernels.kvcache.tensor_cores import stored_type
from labkernels.operation import dtype_name

FILE = Path(__file__).parent / "append.cu"
WARPS = 8


def problem(k, v, k_cache, v_cache, slots, k_scale=None, v_scale=None) -> str | None:
    """What is wrong with these inputs, or None. Looks into slots only where that does not make a GPU wait: on the CPU."""
    for name, new in (("k", k), ("v", v)):
        if new.dim() != 3:
            return f"{name} has shape {tuple(new.shape)}; it must have three axes, (tokens, kv_heads, head_dim)"
        if new.dtype not in FULL_DTYPES:
            return f"{name} is {dtype_name(new.dtype)}; it must be {', '.join(map(dtype_name, FULL_DTYPES))}"
        if new.stride(2) != 1 and new.shape[2] > 1:
            return f"{name} has strides {new.stride()}; the elements of a token must be neighbours in memory (stride 1)"
    if k.shape != v.shape or k.dtype != v.dtype:
        return f"k is {dtype_name(k.dtype)} {tuple(k.shape)}, v is {dtype_name(v.dtype)} {tuple(v.shape)}; both must be equal"
    if wrong := cache_problem(k_cache, v_cache, k_scale, v_scale):
        return f"of the cache, {wrong}"
    if k_cache.dtype != k.dtype and k_cache.dtype not in LARGEST:
        return f"the cache is {dtype_name(k_cache.dtype)}, k is {dtype_name(k.dtype)}; both must be equal, or the cache int8 or float8_e4m3fn"
    if k_cache.shape[1] != k.shape[1] or k_cache.shape[3] != k.shape[2]:
        return f"the cache has {k_cache.shape[1]} heads of {k_cache.shape[3]}, k has {k.shape[1]} of {k.shape[2]}; both must be equal"
    if k.shape[2] > 256:
        return f"k has head_dim {k.shape[2]}; it may be at most 256"
    if slots.dtype != torch.int64 or slots.shape != k.shape[:1] or not slots.is_contiguous():
        return f"slots is {dtype_name(slots.dtype)} of shape {tuple(slots.shape)}; it must be int64 of shape ({k.shape[0]},), contiguous"
    if wrong := on_one_device(k=k, v=v, k_cache=k_cache, v_cache=v_cache, slots=slots, k_scale=k_scale, v_scale=v_scale):
        return wrong
    room = k_cache.shape[0] * k_cache.shape[2]
    if slots.device.type == "cpu" and type(slots) is torch.Tensor and slots.numel() and int(slots.max()) >= room:
        return f"slots names slot {int(slots.max())}; the cache has {room}"
    return None


def append(k, v, k_cache, v_cache, slots, k_scale=None, v_scale=None) -> None:
    """As labkernels.kvcache.cache_append."""
    if wrong := problem(k, v, k_cache, v_cache, slots, k_scale, v_scale):
        raise ArgumentError(f"cache_append: {wrong}")
    tokens, kv_heads, head_dim = k.shape
    if k.numel() == 0 or k_cache.numel() == 0:
        return
    values = 2
    while 32 * values < head_dim:
        values *= 2
    aligned = values * k.element_size() <= 16 and vector_width(values, k, v, k_cache, v_cache) == values
    scales = [stride for scale in (k_scale, v_scale) for stride in (scale.stride()[:2] if scale is not None else (0, 0))]
    strides = (*k.stride()[:2], *v.stride()[:2], *k_cache.stride()[:3], *v_cache.stride()[:3], *scales)
    sizes = struct.pack("<15q4i", *strides, k_cache.shape[0] * k_cache.shape[2], tokens, kv_heads, head_dim, k_cache.shape[2])
    run = kernel(FILE, "cache_append", k.dtype, stored_type(k_cache.dtype), values, str(aligned).lower())
    run(ceil_div(2 * tokens * kv_heads, WARPS), 32 * WARPS, (k, v, k_cache, v_cache, k_scale, v_scale, slots, sizes))
    wrote(k_cache, v_cache, k_scale, v_scale)

