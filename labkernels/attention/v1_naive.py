"""Attention, v1 in Numba CUDA: naive. Three kernels, as the formula is written, with the N x N matrix of scores in memory between them.

  Idea      scores = scale * q k^T; a softmax of each row; out = scores v. One thread a score, one thread a row, one thread an element of
            the output. Nothing here needs more than Python's arithmetic.
  Predicts  The scores are written twice and read three times, 20 bytes a pair of query and key. At S=4096 with 32 heads the matrix takes
            2.1 GB, and 4 times as much at each doubling of S.
  Measured  data/measured/h200/attention.csv: float32, S=4096, d=128, 32 heads: 408 ms.
  Wastes    Memory, all of it. One thread a row is the worst of it: neighbouring threads read words that lie a whole row apart, so each
            brings 32 bytes and uses 4.
"""

import math

import numpy as np
import torch

from labkernels.cuda.numba_cuda import as_numba, cuda, stream

BLOCK = (32, 4)  # threads: keys or head_dim in the direction of x, queries in that of y


@cuda.jit
def scores_kernel(q, k, scores, causal, scale):
    """scores[b, h, i, j] = scale * q[b, h, i] . k[b, h // group, j], or -inf where query i must not see key j."""
    j, i, head = cuda.grid(3)
    batch, h = head // q.shape[1], head % q.shape[1]
    seq_len, kv_len = q.shape[2], k.shape[2]
    if i >= seq_len or j >= kv_len:
        return
    kv_head = h // (q.shape[1] // k.shape[1])
    score = np.float32(0)
    for d in range(q.shape[3]):
        score += q[batch, h, i, d] * k[batch, kv_head, j, d]
    if causal and j > i + kv_len - seq_len:
        scores[batch, h, i, j] = np.float32(-np.inf)
    else:
        scores[batch, h, i, j] = scale * score


@cuda.jit
def softmax_kernel(scores):
    """Softmax of each row (rows, kv_len), in place. A row of nothing but -inf, a query that sees no key, becomes zeros."""
    row = cuda.grid(1)
    if row >= scores.shape[0]:
        return
    largest = np.float32(-np.inf)
    for j in range(scores.shape[1]):
        largest = max(largest, scores[row, j])
    if largest == np.float32(-np.inf):
        largest = np.float32(0)
    total = np.float32(0)
    for j in range(scores.shape[1]):
        weight = math.exp(scores[row, j] - largest)
        scores[row, j] = weight
        total += weight
    if total > np.float32(0):
        for j in range(scores.shape[1]):
            scores[row, j] /= total


@cuda.jit
def output_kernel(scores, v, out):
    """out[b, h, i, d] = sum over j of scores[b, h, i, j] * v[b, h // group, j, d]"""
    d, i, head = cuda.grid(3)
    batch, h = head // out.shape[1], head % out.shape[1]
    if i >= out.shape[2] or d >= out.shape[3]:
        return
    kv_head = h // (out.shape[1] // v.shape[1])
    total = np.float32(0)
    for j in range(v.shape[2]):
        total += scores[batch, h, i, j] * v[batch, kv_head, j, d]
    out[batch, h, i, d] = total


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float) -> torch.Tensor:
    """q (batch, heads, seq_len, head_dim), k and v (batch, kv_heads, kv_len, head_dim), all float32, with any strides."""
    batch, heads, seq_len, head_dim = q.shape
    kv_len = k.shape[2]
    scores = torch.empty((batch, heads, seq_len, kv_len), dtype=torch.float32, device=q.device)
    out = torch.empty((batch, heads, seq_len, head_dim), dtype=torch.float32, device=q.device)
    on = stream(q)
    rows = scores.view(-1, kv_len)

    scores_kernel[_grid(kv_len, seq_len, batch * heads), BLOCK, on](as_numba(q), as_numba(k), as_numba(scores), causal, np.float32(scale))
    softmax_kernel[-(-len(rows) // 64), 64, on](as_numba(rows))
    output_kernel[_grid(head_dim, seq_len, batch * heads), BLOCK, on](as_numba(scores), as_numba(v), as_numba(out))
    return out


def _grid(width: int, height: int, depth: int) -> tuple[int, int, int]:
    """Blocks that cover width x height threads, `depth` times."""
    return -(-width // BLOCK[0]), -(-height // BLOCK[1]), depth
