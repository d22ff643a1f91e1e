"""How each version of `decode_attention` is launched, and on what it can run.

Each takes q (batch, heads, head_dim) or (batch, heads, queries, head_dim), a cache as layout.py has it, and returns a new contiguous tensor of
q's shape and dtype. v4 to v6 are launched in tensor_cores.py.
"""

from __future__ import annotations

from pathlib import Path

import torch

from labkernels.cuda.variants import ceil_div, kernel, processors, vector_width
from labkernels.kvcache import tensor_cores
from labkernels.kvcache.launch import as_rows, capacity, problem_bytes
from labkernels.kvcache.tensor_cores import stored_type
from labkernels.operation import Variant

FOLDER = Path(__file__).parent
THREADS = 256  # of a block, in v2 and v3
SPLIT_TOKENS = 128  # at least, in v3


def v1_naive(q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None) -> torch.Tensor:
    out, file, stored = torch.empty(q.shape, dtype=q.dtype, device=q.device), FOLDER / "v1_naive.cu", stored_type(k.dtype)
    q = as_rows(q)
    batch, heads, queries, head_dim = q.shape
    rows, tokens = heads // k.shape[1] * queries, max(1, capacity(k, block_table))
    scores = torch.empty((batch * heads * queries, tokens), dtype=torch.float32, device=q.device)
    problem = problem_bytes(q, k, v, block_table, scale, k_scale, v_scale)
    grid = (ceil_div(tokens, 128), rows, batch * k.shape[1])
    kernel(file, "decode_scores", q.dtype, stored)(grid, 128, (q, k, k_scale, lengths, block_table, scores, tokens, problem))
    kernel(file, "decode_softmax")(ceil_div(len(scores), 8), 256, (scores, len(scores), tokens))
    grid = (ceil_div(head_dim, 32), rows, batch * k.shape[1])
    kernel(file, "decode_output", q.dtype, stored)(grid, 32, (scores, v, v_scale, lengths, block_table, out, tokens, problem))
    return out


def v2_one_block(q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None) -> torch.Tensor:
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    q = as_rows(q)
    rows, shape = _row_shape(q, k, v)
    run = kernel(FOLDER / "v2_one_block.cu", "decode_one_block", q.dtype, stored_type(k.dtype), *shape)
    problem = problem_bytes(q, k, v, block_table, scale, k_scale, v_scale)
    run((k.shape[1], q.shape[0], rows), THREADS, (q, k, v, k_scale, v_scale, lengths, block_table, out, problem))
    return out


def v3_split(q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None) -> torch.Tensor:
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    q = as_rows(q)
    batch, heads, queries, head_dim = q.shape
    row_blocks, shape = _row_shape(q, k, v)
    tokens = max(1, capacity(k, block_table))
    wanted = ceil_div(4 * processors(q), batch * k.shape[1] * row_blocks)  # splits that fill the GPU
    split_tokens = max(SPLIT_TOKENS if q.is_cuda else 32, ceil_div(tokens, wanted))
    splits = ceil_div(tokens, split_tokens)
    parts = torch.empty(splits * batch * heads * queries * (head_dim + 2), dtype=torch.float32, device=q.device)
    problem = problem_bytes(q, k, v, block_table, scale, k_scale, v_scale)
    run = kernel(FOLDER / "v3_split.cu", "decode_split", q.dtype, stored_type(k.dtype), *shape)
    run((k.shape[1] * splits, batch, row_blocks), THREADS, (q, k, v, k_scale, v_scale, lengths, block_table, parts, split_tokens, problem))
    kernel(FOLDER / "v3_split.cu", "decode_merge", q.dtype)(batch * heads * queries, 128, (parts, lengths, out, split_tokens, problem))
    return out


def _row_shape(q, k, v) -> tuple[int, tuple[int, int, int]]:
    """How many blocks share a head's rows; and VALUES, WIDTH and ROWS of rows.cuh."""
    rows = q.shape[1] // k.shape[1] * q.shape[2]
    values = 2
    while 32 * values < q.shape[-1]:
        values *= 2
    width = vector_width(values, k, v) if values * k.element_size() <= 16 else 1
    of_block = 1 if rows == 1 else 4
    return ceil_div(rows, of_block), (values, width, of_block)


def _any(q, k, *_, **__) -> str | None:
    return "takes a head_dim of at most 256" if q.shape[-1] > 256 else None


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "three kernels, all scores in memory", FOLDER / "v1_naive.cu"),
        Variant("v2_one_block", v2_one_block, "one block a head of k and v: read once for the whole group", FOLDER / "v2_one_block.cu", _any),
        Variant("v3_split", v3_split, "several blocks share a head's tokens, a second kernel merges", FOLDER / "v3_split.cu", _any),
        *tensor_cores.VARIANTS,
    )
}
