"""What the launchers of v2 and v4 of `attention_backward` share: sizes in tiles, the buffers between their kernels, and grids for any number of batches."""

from __future__ import annotations

import struct

import torch

from labkernels.attention.launches import launches
from labkernels.attention_backward.packing import Packed, as_heads, gradients_like
from labkernels.cuda.variants import ceil_div


class BackwardPass:
    """One call: its tensors as heads, and how they are cut into the tiles of `tiling`, whose keys, queries, head_dim and pairs count.

    `results` are dq, dk and dv as the caller gets them. `sums` of dq, float32, begin as zeros; `turns` are there in deterministic mode alone.
    """

    def __init__(self, tiling, grad_out, q, k, v, out, lse, packed: Packed | None, deterministic: bool):
        self.packed = packed is not None
        self.cu_q, self.cu_k, self.seq_len, self.kv_len = packed or (None, None, q.shape[2], k.shape[2])
        self.batch = len(self.cu_q) - 1 if packed else q.shape[0]
        self.results = gradients_like(q, k, v)
        self.grad_out, self.q, self.k, self.v, self.out, self.dq, self.dk, self.dv = as_heads(packed, grad_out, q, k, v, out, *self.results)
        self.lse = lse if lse.stride(-1) == 1 else lse.contiguous()
        self.lse_strides = 0 if packed else self.lse.stride(0), self.lse.stride(-2)
        self.heads, self.kv_heads, self.head_dim, self.device = self.q.shape[1], self.k.shape[1], self.q.shape[3], self.q.device
        self.tiles, self.row_tiles, self.all_tiles = self._cut(self.q, self.seq_len, tiling.queries)
        values = self.all_tiles * tiling.queries
        self.row_lse, self.delta = torch.empty((2, values), dtype=torch.float32, device=self.device)
        self.sums = torch.zeros(values * tiling.head_dim, dtype=torch.float32, device=self.device)
        self.turns = torch.zeros(self.all_tiles * 2 * tiling.pairs, dtype=torch.int32, device=self.device) if deterministic else None

    def key_tiles(self, rows: int) -> tuple[int, int, int]:
        """Tiles of so many keys: of the longest sequence, of a head, of all heads."""
        return self._cut(self.k, self.kv_len, rows)

    def _cut(self, heads: torch.Tensor, length: int, rows: int) -> tuple[int, int, int]:
        tiles = ceil_div(length, rows)
        of_head = heads.shape[2] // rows + self.batch if self.packed else tiles
        return tiles, of_head, (1 if self.packed else self.batch) * heads.shape[1] * of_head

    def steps(self, tensor: torch.Tensor) -> bytes:
        """A `Strides`; packed sequences all lie in batch 0."""
        return struct.pack("<3q", 0 if self.packed else tensor.stride(0), *tensor.stride()[1:3])

    def launch(self, run, blocks: tuple[int, ...], heads: int, threads: int, args: tuple, shared_bytes: int = 0) -> None:
        """blocks: of grid x, and of z; `heads` of each batch are on y."""
        for first, batches in launches(self.batch, heads):
            run((blocks[0], batches * heads, *blocks[1:]), threads, (*args, first), shared_bytes)
