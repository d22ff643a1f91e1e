"""Other people's decode attention: PyTorch's backends by name, and FlashInfer's paged kernel where it is installed."""

from __future__ import annotations

import functools
import importlib.util

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from labkernels.kvcache.launch import as_rows, capacity
from labkernels.kvcache.reference import native
from labkernels.operation import Peer


def _backend(name: str, backend: SDPBackend) -> Peer:
    def fn(q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(as_rows(q), k, v, scale=scale, enable_gqa=q.shape[1] != k.shape[1]).reshape(q.shape)

    def accepts(q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None):
        if not q.is_cuda:
            return "needs a GPU"
        if block_table is not None:
            return "no pages"
        if k.dtype != q.dtype or q.dtype == torch.float32:
            return "no float32, no quantised cache"
        if as_rows(q).shape[2] > 1 or not bool((lengths == capacity(k, None)).all()):
            return "one query a sequence, and a cache that is full"
        return None

    return Peer(name, fn, accepts)


def _flashinfer(q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None):
    sizes = (q.shape[1], k.shape[1], q.shape[-1], k.shape[2], q.dtype, k.dtype, scale)
    wrapper = _planned(*block_table.shape, sizes, q.device)
    wrapper._paged_kv_indices_buf = block_table.reshape(-1)  # no plan depends on which pages these are
    return wrapper.run(as_rows(q)[:, :, 0], (k, v)).reshape(q.shape)


@functools.lru_cache(maxsize=64)
def _planned(batch: int, pages: int, sizes: tuple, device: torch.device):
    """FlashInfer's wrapper, told how long the sequences are: what it calls its plan, made once for all caches of a shape and not timed."""
    import flashinfer

    heads, kv_heads, head_dim, page_size, q_dtype, kv_dtype, scale = sizes
    indptr = torch.arange(0, (batch + 1) * pages, pages, dtype=torch.int32)
    indices = torch.zeros(batch * pages, dtype=torch.int32, device=device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(_workspace(), "HND", use_tensor_cores=True)
    last = torch.full((batch,), page_size, dtype=torch.int32)
    wrapper.plan(indptr, indices, last, heads, kv_heads, head_dim, page_size, q_data_type=q_dtype, kv_data_type=kv_dtype, sm_scale=scale)
    return wrapper


@functools.cache
def _workspace() -> torch.Tensor:
    return torch.empty(128 << 20, dtype=torch.uint8, device="cuda")


def _flashinfer_accepts(q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None):
    if not q.is_cuda:
        return "needs a GPU"
    if importlib.util.find_spec("flashinfer") is None:
        return "flashinfer is not installed"
    if block_table is None or k_scale is not None or as_rows(q).shape[2] > 1 or q.dtype == torch.float32:
        return "one query a sequence, pages of 16-bit elements"
    if block_table.numel() == 0 or not bool((lengths == capacity(k, block_table)).all()):
        return "a cache that is full"  # so that its plan can be made ahead, without reading the lengths
    return None


PEERS = {
    peer.name: peer
    for peer in (
        Peer("torch", native, lambda q, *_, **__: None if q.is_cuda else "needs a GPU"),
        _backend("cudnn", SDPBackend.CUDNN_ATTENTION),
        _backend("flash", SDPBackend.FLASH_ATTENTION),
        Peer("flashinfer", _flashinfer, _flashinfer_accepts),
    )
}
