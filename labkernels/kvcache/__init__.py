"""The cache of keys and values: layouts, append kernels, decode attention, pages."""

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
    head_dim (labkernels.kvcache.layout). heads must be a multiple of kv_heads. lengths (batch,) int32 counts each sequence's tokens, those of
    the queries among them; it stays on the GPU, so that a CUDA graph may be replayed as sequences grow. Returns q's shape and dtype; a query that
    sees nothing gets zeros. The same inputs give the same bits. Raises ArgumentError that names the wrong input. Forward only.

    Splitting the tokens: Dao et al., Flash-Decoding (2023). Pages: Kwon et al., PagedAttention (2023).
    """
    from labkernels.kvcache.decode_attention_op import OP

    return OP.run(q=q, k=k, v=v, lengths=lengths, block_table=block_table, scale=scale, k_scale=k_scale, v_scale=v_scale)
