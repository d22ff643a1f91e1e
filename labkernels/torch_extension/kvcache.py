"""The KV cache as torch operators: cache_append, which writes to the caches it is given, decode_attention and prefill_attention.

On CPU tensors their kernels run in the emulator, on CUDA tensors they are launched from Python. None has a gradient. No data is waited for: lengths,
block tables and slots stay on the GPU, so that a captured or compiled decode step serves sequences as they grow.
"""

from __future__ import annotations

import torch

from labkernels.errors import ArgumentError
from labkernels.kvcache import append as _append
from labkernels.kvcache import prefill as _prefill
from labkernels.kvcache.decode_attention_op import OP
from labkernels.torch_extension.operators import define

_CACHE = "Tensor lengths, Tensor? block_table=None, float? scale=None, Tensor? k_scale=None, Tensor? v_scale=None"
SCHEMAS = {
    "decode_attention": f"(Tensor q, Tensor k, Tensor v, {_CACHE}) -> Tensor",
    "prefill_attention": f"(Tensor q, Tensor k, Tensor v, {_CACHE}, Tensor? cu_seqlens_q=None, int? max_seqlen_q=None, int? max_length=None) -> Tensor",
    "cache_append": "(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slots, Tensor(c!)? k_scale=None, Tensor(d!)? v_scale=None) -> ()",
}


def decode_attention(q, k, v, lengths, block_table=None, scale=None, k_scale=None, v_scale=None) -> torch.Tensor:
    return OP.run(q=_dense(q), k=k, v=v, lengths=lengths, block_table=block_table, scale=scale, k_scale=k_scale, v_scale=v_scale)


def decode_attention_fake(q, k, v, lengths, block_table=None, scale=None, k_scale=None, v_scale=None) -> torch.Tensor:
    if wrong := OP.problem(_dense(q), k, v, lengths, block_table, scale, k_scale=k_scale, v_scale=v_scale):
        raise ArgumentError(f"decode_attention: {wrong}")
    return q.new_empty(q.shape)


def prefill_attention(
    q, k, v, lengths, block_table=None, scale=None, k_scale=None, v_scale=None, cu_seqlens_q=None, max_seqlen_q=None, max_length=None
) -> torch.Tensor:  # fmt: skip
    packing = {"cu_seqlens_q": cu_seqlens_q, "max_seqlen_q": max_seqlen_q, "max_length": max_length}
    return _prefill.prefill(_dense(q), k, v, lengths, block_table, scale, k_scale=k_scale, v_scale=v_scale, **packing).contiguous()


def prefill_attention_fake(q, k, v, lengths, *_, **__) -> torch.Tensor:
    return q.new_empty(q.shape)


def cache_append(k, v, k_cache, v_cache, slots, k_scale=None, v_scale=None) -> None:
    _append.append(_dense(k), _dense(v), k_cache, v_cache, slots, k_scale, v_scale)


def cache_append_fake(k, v, k_cache, v_cache, slots, k_scale=None, v_scale=None) -> None:
    if wrong := _append.problem(_dense(k), _dense(v), k_cache, v_cache, slots, k_scale, v_scale):
        raise ArgumentError(f"cache_append: {wrong}")


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, the last axis dense in memory."""
    return tensor if tensor.dim() == 0 or tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


for _name, _schema in SCHEMAS.items():
    define(_name, _schema, globals()[_name], globals()[f"{_name}_fake"])
