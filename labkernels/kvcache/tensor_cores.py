"""How v4, decode attention on tensor cores, is launched: its tilings, its grid, and what it can run on."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from pathlib import Path

import torch

from labkernels.cuda.variants import ceil_div, kernel, processors
from labkernels.kvcache.launch import as_rows, capacity, counters, problem_bytes
from labkernels.operation import Variant

FILE = Path(__file__).parent / "v4_tensor_cores.cu"
CHUNK = 16  # tokens that a warp takes at a time
WAVES = 4  # as many blocks as run at a time, so often at most
LEAST_TILES = 32  # that a block should have, before there are more blocks than run at a time


@dataclass(frozen=True)
class Tiling:
    """How the work is split; the fields are explained in v4_tensor_cores.cu."""

    head_dim: int
    row_tiles: int
    warps: int
    blocks: int

    @property
    def rows(self) -> int:
        return 8 * self.row_tiles

    @property
    def shared_bytes(self) -> int:
        return self.warps * self.rows * (4 * self.head_dim + 8) + 16

    def __str__(self) -> str:
        return f"Tiling<{', '.join(map(str, astuple(self)))}>"


TILINGS = {
    (64, 1): Tiling(64, 1, 4, 4),
    (64, 2): Tiling(64, 2, 4, 3),
    (128, 1): Tiling(128, 1, 4, 3),
    (128, 2): Tiling(128, 2, 4, 2),
}


def decode(q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None) -> torch.Tensor:
    rows = q.shape[1] // k.shape[1] * (q.shape[2] if q.dim() == 4 else 1)
    return configured(TILINGS[q.shape[-1], 1 if rows <= 8 else 2], q, k, v, lengths, block_table, scale, k_scale=k_scale, v_scale=v_scale)


def configured(
    tiling: Tiling, q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None, waves=WAVES, least=LEAST_TILES, run=None,
) -> torch.Tensor:  # fmt: skip
    """v4 with this tiling; `run` is another build of its kernel."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    q = as_rows(q)
    rows = q.shape[1] // k.shape[1] * q.shape[2]
    items = q.shape[0] * k.shape[1] * ceil_div(rows, tiling.rows)
    resident = processors(q) * tiling.blocks
    tiles = items * max(1, ceil_div(capacity(k, block_table), CHUNK * tiling.warps))
    grid = tiles if tiles <= resident else resident * max(1, min(waves, tiles // (resident * least)))
    slots = 2 * grid * tiling.rows
    parts = torch.empty(slots * (tiling.head_dim + 2), dtype=torch.float32, device=q.device)
    args = (
        q, k, v, k_scale, v_scale, lengths, block_table, out, parts, parts[slots * tiling.head_dim :], counters(grid, q.device), resident, least,
        problem_bytes(q, k, v, block_table, scale, k_scale, v_scale),
    )  # fmt: skip
    run = run or kernel(FILE, "decode_tensor_cores", q.dtype, _c_name(k.dtype) or q.dtype, tiling)
    run(grid, 32 * tiling.warps, args, tiling.shared_bytes)
    return out


def _c_name(dtype: torch.dtype) -> str | None:
    return {torch.int8: "signed char", torch.float8_e4m3fn: "__nv_fp8_e4m3"}.get(dtype)


def accepts(q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None) -> str | None:
    if q.dtype not in (torch.bfloat16, torch.float16):
        return "takes queries in bfloat16 and float16"
    if q.shape[-1] not in (64, 128):
        return "takes a head_dim of 64 or 128"
    if block_table is not None and k.shape[2] % CHUNK:
        return f"takes pages of a multiple of {CHUNK} tokens"
    if q.is_cuda and torch.cuda.get_device_capability(q.device) < (8, 0):
        return "needs a GPU of compute capability 8.0 or more"
    for name, tensor, size in (("q", q, 8), ("k", k, 16), ("v", v, 16)):
        distances = [stride * tensor.element_size() for stride, length in zip(tensor.stride()[:-1], tensor.shape[:-1]) if length > 1]
        if any(distance % size for distance in (tensor.data_ptr(), *distances)):
            return f"takes rows that lie on a multiple of {size} bytes, {name}'s do not"
    return None


VARIANT = Variant("v4_tensor_cores", decode, "the group as rows of tensor cores, all tokens shared out equally, one launch", FILE, accepts)
