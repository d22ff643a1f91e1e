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
    return _planned(block_table.data_ptr(), lengths.data_ptr(), sizes, _Tables(block_table, lengths)).run(as_rows(q)[:, :, 0], (k, v)).reshape(q.shape)


class _Tables:
    """Two tensors that do not count as part of a cache's key."""

    def __init__(self, block_table, lengths):
        self.block_table, self.lengths = block_table, lengths

    def __eq__(self, other):
        return True

    def __hash__(self):
        return 0


@functools.lru_cache(maxsize=512)
def _planned(_table: int, _lengths: int, sizes: tuple, tables: _Tables):
    """FlashInfer's wrapper, told lengths and pages: what it calls its plan, made once and not timed."""
    import flashinfer

    heads, kv_heads, head_dim, page_size, q_dtype, kv_dtype, scale = sizes
    pages = (tables.lengths.long() + page_size - 1) // page_size
    indptr = torch.cat([pages.new_zeros(1), pages.cumsum(0)]).int()
    indices = torch.cat([row[:count] for row, count in zip(tables.block_table, pages.tolist())])
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(_workspace(), "HND", use_tensor_cores=True)
    last = (tables.lengths - (pages.int() - 1) * page_size).int()
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
