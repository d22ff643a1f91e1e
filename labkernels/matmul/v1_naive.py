"""Matmul, v1 in Numba CUDA: naive. One thread for each element of the result, which walks along a row of a and down a column of b.

  Idea      c[i, j] = sum over l of a[i, l] * b[l, j], as the formula is written. Threads are numbered as the matrix is: i along the first
            axis of the grid, j along the second.
  Predicts  Two loads, 8 bytes, for each multiply-add: at 4096^3 550 GB pass through the load units, where 0.2 GB would do.
  Wastes    The order of the threads. Neighbours in a warp differ in i, so one load of a touches 32 rows and brings 32 sectors of 32 bytes,
            of which it uses 4 each; and c is written in the same way.
"""

import numpy as np
import torch

from labkernels.cuda.numba_cuda import as_numba, cuda, stream

BLOCK = (32, 8)  # threads: rows of the result in the direction of x, columns in that of y


@cuda.jit
def matmul_kernel(a, b, c):
    """c[i, j] = a[i] . b[:, j]"""
    i, j = cuda.grid(2)
    if i >= c.shape[0] or j >= c.shape[1]:
        return
    total = np.float32(0)
    for step in range(a.shape[1]):
        total += a[i, step] * b[step, j]
    c[i, j] = total


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a (m, k) times b (k, n), both float32, with any strides."""
    c = torch.empty((a.shape[0], b.shape[1]), dtype=torch.float32, device=a.device)
    if a.shape[1] == 0:
        return c.zero_()
    if c.numel():
        grid = tuple(-(-size // threads) for size, threads in zip(c.shape, BLOCK))
        matmul_kernel[grid, BLOCK, stream(a)](as_numba(a), as_numba(b), as_numba(c))
    return c
