"""How v4, v5 and v6, decode attention on tensor cores, are launched: their tilings, their grids, and what they can run on."""

from __future__ import annotations

import functools
from dataclasses import astuple, dataclass
from pathlib import Path

import torch

from labkernels.cuda.lasting import counters
from labkernels.cuda.variants import ceil_div, hopper_refusal, kernel, processors
from labkernels.kvcache.launch import as_rows, capacity, problem_bytes
from labkernels.operation import Variant

FOLDER = Path(__file__).parent
CHUNK = 16  # tokens that a warp takes at a time
MAX_CLUSTER = 8


@dataclass(frozen=True)
class Tiling:
    """How the work is split; the fields are explained in group_rows.cuh."""

    head_dim: int
    row_tiles: int
    warps: int
    blocks: int

    @property
    def rows(self) -> int:
        return 8 * self.row_tiles

    @property
    def tile(self) -> int:
        return CHUNK * self.warps

    @property
    def meeting_bytes(self) -> int:
        return 16 * ceil_div(self.warps * self.rows * (4 * self.head_dim + 8) + 4, 16)

    @property
    def slices_bytes(self) -> int:
        return 24 * (self.rows * self.head_dim // 4 + MAX_CLUSTER)

    def __str__(self) -> str:
        return f"Tiling<{', '.join(map(str, astuple(self)))}>"


# Which tiling, by the times of 4 and 8 warps and 1 to 4 blocks a multiprocessor on an H200, seen while the kernels were made; no file holds them.
TILINGS = {  # by head_dim, tiles of 8 rows, and whether there are more heads in all than multiprocessors
    (64, 1, False): Tiling(64, 1, 8, 2),
    (64, 2, False): Tiling(64, 2, 8, 1),
    (128, 1, False): Tiling(128, 1, 8, 1),
    (128, 2, False): Tiling(128, 2, 8, 1),
    (64, 1, True): Tiling(64, 1, 4, 2),
    (64, 2, True): Tiling(64, 2, 4, 2),
    (128, 1, True): Tiling(128, 1, 4, 2),
    (128, 2, True): Tiling(128, 2, 4, 2),
}
CLUSTERS = {
    (64, 1, False): Tiling(64, 1, 8, 1),
    (64, 2, False): Tiling(64, 2, 8, 1),
    (128, 1, False): Tiling(128, 1, 8, 1),
    (128, 2, False): Tiling(128, 2, 8, 1),
    (64, 1, True): Tiling(64, 1, 4, 2),
    (64, 2, True): Tiling(64, 2, 4, 2),
    (128, 1, True): Tiling(128, 1, 4, 2),
    (128, 2, True): Tiling(128, 2, 4, 2),
}
GUESSES = {  # of v6, by head_dim and tiles of 8 rows: for no more heads than multiprocessors, for more, and for a long quantised cache
    (64, 1): (Tiling(64, 1, 8, 2), Tiling(64, 1, 8, 2), Tiling(64, 1, 4, 4)),
    (64, 2): (Tiling(64, 2, 8, 1), Tiling(64, 2, 4, 3), Tiling(64, 2, 4, 3)),
    (128, 1): (Tiling(128, 1, 8, 1), Tiling(128, 1, 8, 1), Tiling(128, 1, 4, 4)),
    (128, 2): (Tiling(128, 2, 8, 1), Tiling(128, 2, 8, 1), Tiling(128, 2, 4, 2)),
}


def tensor_cores(q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None) -> torch.Tensor:
    return shared_out(TILINGS[_key(q, k)], q, k, v, lengths, block_table, scale, k_scale=k_scale, v_scale=v_scale)


def shared_out(
    tiling: Tiling, q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None, run=None
) -> torch.Tensor:  # fmt: skip
    """v4 with this tiling; `run` is another build of its kernel."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    q = as_rows(q)
    items = _items(tiling, q, k)
    resident = processors(q) * tiling.blocks
    most = items * ceil_div(max(1, capacity(k, block_table)), CHUNK * tiling.warps)  # splits in which every warp has something to do
    grid = min(most, resident if items <= resident else items + resident)
    slots = grid * tiling.rows
    parts = torch.empty(slots * (tiling.head_dim + 2), dtype=torch.float32, device=q.device)
    args = (
        q, k, v, k_scale, v_scale, lengths, block_table, out, parts, parts[slots * tiling.head_dim :], counters(grid, q.device), resident,
        problem_bytes(q, k, v, block_table, scale, k_scale, v_scale),
    )  # fmt: skip
    run = run or kernel(FOLDER / "v4_tensor_cores.cu", "decode_tensor_cores", q.dtype, stored_type(k.dtype), tiling)
    run(grid, 32 * tiling.warps, args, tiling.meeting_bytes)
    return out


def guess(q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None) -> torch.Tensor:
    return guessed(guess_tiling(q, k, block_table), q, k, v, lengths, block_table, scale, k_scale=k_scale, v_scale=v_scale)


def guessed(
    tiling: Tiling, q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None, run=None
) -> torch.Tensor:  # fmt: skip
    """v6 with this tiling; `run` is another build of its kernel."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    q = as_rows(q)
    items, room = _items(tiling, q, k), capacity(k, block_table)
    resident = processors(q) * tiling.blocks
    splits = guess_splits(tiling, items, room, resident)
    most = items * ceil_div(max(1, room), CHUNK * tiling.warps)
    grid = max(items * splits, min(most, resident if items <= resident else items + resident))
    slots = grid * tiling.rows
    parts = torch.empty(slots * (tiling.head_dim + 2), dtype=torch.float32, device=q.device)
    args = (
        q, k, v, k_scale, v_scale, lengths, block_table, out, parts, parts[slots * tiling.head_dim :], counters(grid, q.device), resident, splits, room,
        k.shape[0], problem_bytes(q, k, v, block_table, scale, k_scale, v_scale),
    )  # fmt: skip
    run = run or kernel(FOLDER / "v6_guess.cu", "decode_guess", q.dtype, stored_type(k.dtype), tiling)
    run(grid, 32 * tiling.warps, args, tiling.meeting_bytes)
    return out


@functools.lru_cache(maxsize=4096)
def guess_splits(tiling: Tiling, items: int, room: int, resident: int) -> int:
    """Into how many splits to cut each of `items`, if all are of one length: so that blocks, of which `resident` run at a time, end together."""

    def time(splits: int) -> float:  # in tokens: of each round of blocks, and what its beginning and end take
        return ceil_div(items * splits, resident) * (room / splits + ROUND_TOKENS)

    return min(range(1, max(1, min(resident, ceil_div(room, tiling.tile))) + 1), key=time)


def guess_tiling(q, k, block_table) -> Tiling:
    """Of 16-bit caches large blocks, but small ones for many heads of 64 with more than 8 rows. A quantised cache has half the bytes on their way to a
    warp, and so more warps, as soon as there are more tokens than all wait for at the beginning."""
    head_dim, row_tiles, many = _key(q, k)
    few, small, quantised = GUESSES[head_dim, row_tiles]
    if k.element_size() > 1:
        return small if many else few
    at_once = few.tile * (processors(q) if q.is_cuda else 132)
    return quantised if capacity(k, block_table) * _items(few, as_rows(q), k) > CLUSTER_ROUNDS * at_once else few


def cluster(q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None) -> torch.Tensor:
    return clustered(cluster_tiling(q, k), None, q, k, v, lengths, block_table, scale, k_scale=k_scale, v_scale=v_scale)


def clustered(
    tiling: Tiling, blocks: int | None, q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None, run=None
) -> torch.Tensor:  # fmt: skip
    """v5 with this tiling and so many blocks a cluster; `run` is another build of its kernel."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    q = as_rows(q)
    row_blocks = ceil_div(q.shape[1] // k.shape[1] * q.shape[2], tiling.rows)
    blocks = blocks or cluster_blocks(tiling, q, k, block_table)
    args = (
        q, k, v, k_scale, v_scale, lengths, block_table, out, capacity(k, block_table), k.shape[0],
        problem_bytes(q, k, v, block_table, scale, k_scale, v_scale),
    )  # fmt: skip
    run = run or kernel(FOLDER / "v5_cluster.cu", "decode_cluster", q.dtype, stored_type(k.dtype), tiling)
    grid = (blocks, k.shape[1] * row_blocks, q.shape[0])
    run(grid, 32 * tiling.warps, args, tiling.meeting_bytes + tiling.slices_bytes, cluster=(blocks, 1, 1))
    return out


def cluster_tiling(q, k) -> Tiling:
    head_dim, row_tiles, many = _key(q, k)
    return GUESSES[head_dim, row_tiles][2] if many and k.element_size() == 1 else CLUSTERS[head_dim, row_tiles, many]


def cluster_blocks(tiling: Tiling, q, k, block_table) -> int:
    """How many blocks share a head: as many as the GPU has room for, as long as each of their warps has something to do."""
    room, blocks = (processors(q) if q.is_cuda else 132) * tiling.blocks, 1
    while blocks < MAX_CLUSTER and 2 * blocks * _items(tiling, q, k) <= room and blocks * tiling.tile < capacity(k, block_table):
        blocks *= 2
    return blocks


def stored_type(dtype: torch.dtype) -> str | torch.dtype:
    """The C++ type of a cache's elements, as labkernels.cuda.variants.kernel takes it."""
    return {torch.int8: "signed char", torch.float8_e4m3fn: "__nv_fp8_e4m3"}.get(dtype, dtype)


def _key(q, k) -> tuple[int, int, bool]:
    rows = q.shape[1] // k.shape[1] * (q.shape[2] if q.dim() == 4 else 1)
    row_tiles = 1 if rows <= 8 else 2
    items = q.shape[0] * k.shape[1] * ceil_div(rows, 8 * row_tiles)
    return q.shape[-1], row_tiles, items > (processors(q) if q.is_cuda else 132)


def _items(tiling: Tiling, q, k) -> int:
    """Heads of k and v in all sequences, as often as it takes for all of their rows; q (batch, heads, queries, head_dim)."""
    return q.shape[0] * k.shape[1] * ceil_div(q.shape[1] // k.shape[1] * q.shape[2], tiling.rows)


def accepts(q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None) -> str | None:
    if q.dtype not in (torch.bfloat16, torch.float16):
        return "takes queries in bfloat16 and float16"
    if q.shape[-1] not in (64, 128):
        return "takes a head_dim of 64 or 128"
    if block_table is not None and k.shape[2] % CHUNK:
        return f"takes pages of a multiple of {CHUNK} tokens"
    if q.is_cuda and torch.cuda.get_device_capability(q.device) < (8, 0):
        return "needs a GPU of compute capability 8.0 or more"
    caches = {"k": k, "v": v, "k_scale": k_scale, "v_scale": v_scale}
    for name, tensor in caches.items():
        if tensor is not None and max(tensor.stride()) >= 2**31:
            return f"takes caches whose strides are below 2^31, {name} has {max(tensor.stride())}"
    for name, tensor, size in (("q", q, 8), ("k", k, 16), ("v", v, 16)):
        distances = [stride * tensor.element_size() for stride, length in zip(tensor.stride()[:-1], tensor.shape[:-1]) if length > 1]
        if any(distance % size for distance in (tensor.data_ptr(), *distances)):
            return f"takes rows that lie on a multiple of {size} bytes, {name}'s do not"
    return None


ROUND_TOKENS = 512  # what a block takes to begin and to end, in tokens that it could read in that time
CLUSTER_ROUNDS = 16  # of 16 tokens that a warp of v5 takes at most: it cannot deal out what the lengths leave free
FEW_ROUNDS = 4  # of them even where clusters fill but part of the GPU


def accepts_cluster(q, k, v, lengths, block_table=None, scale=None, *, k_scale=None, v_scale=None) -> str | None:
    if wrong := accepts(q, k, v, lengths, block_table, scale, k_scale=k_scale, v_scale=v_scale) or hopper_refusal(q):
        return wrong
    tiling, rows = cluster_tiling(q, k), as_rows(q)
    blocks = cluster_blocks(tiling, rows, k, block_table)
    rounds = ceil_div(capacity(k, block_table), blocks * tiling.tile)
    processors_used = blocks * _items(tiling, rows, k) / tiling.blocks / (processors(q) if q.is_cuda else 132)
    most = CLUSTER_ROUNDS if processors_used > 0.75 else FEW_ROUNDS
    if rounds > most:
        return f"takes caches with room for {most * blocks * tiling.tile} tokens a sequence here, of few enough for each warp to wait but a few times"
    return None


VARIANTS = (
    Variant("v4_tensor_cores", tensor_cores, "the group as rows of tensor cores, splits that fit the lengths, one launch",
            FOLDER / "v4_tensor_cores.cu", accepts),
    Variant("v5_cluster", cluster, "few tokens: a cluster a head merges in shared memory, loads do not wait for the length",
            FOLDER / "v5_cluster.cu", accepts_cluster),
    Variant("v6_guess", guess, "many tokens: loads begin as if all sequences were of one length, before the lengths are known",
            FOLDER / "v6_guess.cu", accepts),
)  # fmt: skip
