"""The cache of keys and values: appending to it, attention of new tokens against it. Layouts are described in labkernels.kvcache.layout.

`PagedKVCache` and `ContiguousKVCache` (labkernels.kvcache.caches) hold the tensors of a model; `PageAllocator` (labkernels.kvcache.pages) says who
has which page.
"""

import torch


def decode_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: torch.Tensor,
    block_table: torch.Tensor | None = None,
    scale: float | None = None,
    *,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(q k^T * scale) v of the last token of each sequence, or the last few, against all that the cache holds; by the fastest variant.

    q (batch, heads, head_dim), or (batch, heads, queries, head_dim): then query i is the sequence's token lengths[b] - queries + i and sees the
    tokens up to itself. float32, bfloat16 or float16. k and v (batch, kv_heads, max_seq, head_dim), or with a block_table (batch, max_pages) int32
    (num_pages, kv_heads, page_size, head_dim): of q's dtype, or int8 or float8_e4m3fn with k_scale and v_scale, float32 of k's shape without
    head_dim. heads must be a multiple of kv_heads. lengths (batch,) int32 counts each sequence's tokens, those of the queries among them; it stays
    on the GPU, so that a CUDA graph may be replayed as sequences grow. Returns q's shape and dtype; a query that sees nothing gets zeros. The same
    inputs give the same bits. Raises ArgumentError that names the wrong input. Forward only.

    Splitting the tokens: Dao et al., Flash-Decoding (2023). Pages: Kwon et al., PagedAttention (2023).
    """
    if _compiling(q):
        return torch.ops.labkernels.decode_attention(q, k, v, lengths, block_table, scale, k_scale, v_scale)
    from labkernels.kvcache.decode_attention_op import OP

    return OP.run(q=q, k=k, v=v, lengths=lengths, block_table=block_table, scale=scale, k_scale=k_scale, v_scale=v_scale)


def prefill_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: torch.Tensor,
    block_table: torch.Tensor | None = None,
    scale: float | None = None,
    *,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_length: int | None = None,
) -> torch.Tensor:
    """Attention of a chunk of each sequence's last tokens against its cache, which holds them already; each sees itself and what came before.

    q (batch, heads, queries, head_dim); or chunks of different lengths one after the other, q (total_q, heads, head_dim) with cu_seqlens_q
    (batch + 1,) int32, and max_seqlen_q, the longest or more (else a GPU is waited for). The cache, lengths and scales as for decode_attention.
    The cache's tokens are first packed, in q's dtype; max_length, the longest sequence or more, keeps the room for that small: else it is what
    the cache or the block table could hold. Returns q's shape and dtype. Raises ArgumentError. Forward only.
    """
    packing = {"cu_seqlens_q": cu_seqlens_q, "max_seqlen_q": max_seqlen_q, "max_length": max_length}
    if _compiling(q):
        return torch.ops.labkernels.prefill_attention(q, k, v, lengths, block_table, scale, k_scale, v_scale, **packing)
    from labkernels.kvcache.prefill import prefill

    return prefill(q, k, v, lengths, block_table, scale, k_scale=k_scale, v_scale=v_scale, **packing)


def cache_append(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> None:
    """Write new tokens into the cache, quantised on the way if the cache is int8 or float8_e4m3fn.

    k and v (tokens, kv_heads, head_dim), float32, bfloat16 or float16, with any strides but the last; the cache contiguous or paged, of the same
    dtype or quantised with k_scale and v_scale to be written, too. slots (tokens,) int64: page * page_size + offset of each token (contiguous: sequence
    * max_seq + position), -1 to skip it; two tokens may not have one slot. Raises ArgumentError that names the wrong input.
    """
    if _compiling(k):
        return torch.ops.labkernels.cache_append(k, v, k_cache, v_cache, slots, k_scale, v_scale)
    from labkernels.kvcache.append import append

    return append(k, v, k_cache, v_cache, slots, k_scale, v_scale)


def _compiling(tensor: torch.Tensor) -> bool:
    if not torch.compiler.is_compiling():
        return False
    import labkernels.torch_extension  # noqa: F401  defines the operators

    return True
