"""How the versions of `matmul` on ordinary FMA units, v1 to v5, are launched, and on what they can run; and the whole ladder.

Each takes a (m, k), b (k, n), bias (n,), an activation's name and residual (m, n), as `labkernels.matmul.matmul` does, and returns a new
contiguous (m, n) of a's dtype. v6 is launched in tensor_cores.py, v7 in hopper.py, v8 in split.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from labkernels.cuda.kernel import MAX_GRID
from labkernels.cuda.variants import ceil_div, kernel, numba_refusal, vector_width
from labkernels.matmul.hopper import V7
from labkernels.matmul.launch import activation_number, launch
from labkernels.matmul.split import V8
from labkernels.matmul.tensor_cores import V6
from labkernels.operation import Variant

FOLDER = Path(__file__).parent
BLOCK = (32, 8)  # threads of v1 and v2
TILE, REGISTER_TILE = 32, 128  # elements of the result that a block of v3 and of v4 owns, each way


class Tile(NamedTuple):
    """What a block and a thread of v5 own: the template arguments of v5_pipelined.cu that come after the activation."""

    tile_m: int
    tile_n: int
    rows: int  # of a thread
    cols: int
    depth: int  # of a slice
    teams: int = 1  # each of enough warps for the tile; they share out the depth of a slice

    @property
    def threads(self) -> int:
        return self.teams * (self.tile_m // self.rows) * (self.tile_n // self.cols)

    @property
    def shared_bytes(self) -> int:
        """sizeof(Shared<...>) in v5_pipelined.cu, and room for a tile of sums where teams add theirs up."""
        slices = 4 * 2 * self.depth * (self.tile_m + 4 + self.tile_n + 4)
        return max(slices, 4 * self.tile_m * self.tile_n) if self.teams > 1 else slices


# From large to small. A small tile keeps more SMs busy, and a smaller share of its instructions are FMAs: 512 of 571 with the first.
TILES = {
    Tile(128, 128, 8, 8, 8): 0.90,
    Tile(64, 64, 8, 4, 16, teams=2): 0.84,
    Tile(32, 64, 4, 8, 32, teams=4): 0.82,
    Tile(32, 32, 4, 4, 32, teams=4): 0.76,
}


def v1_naive(a, b, bias=None, activation=None, residual=None):
    from labkernels.matmul import v1_naive

    return v1_naive.matmul(a, b)


def v1_naive_cuda(a, b, bias=None, activation=None, residual=None):
    grid = ceil_div(a.shape[0], BLOCK[0]), ceil_div(b.shape[1], BLOCK[1])
    return _launch("v1_naive.cu", "matmul_naive", grid, BLOCK, a, b, bias, activation, residual)


def v2_coalesced(a, b, bias=None, activation=None, residual=None):
    grid = ceil_div(b.shape[1], BLOCK[0]), ceil_div(a.shape[0], BLOCK[1])
    return _launch("v2_coalesced.cu", "matmul_coalesced", grid, BLOCK, a, b, bias, activation, residual)


def v3_tiled(a, b, bias=None, activation=None, residual=None):
    grid = ceil_div(b.shape[1], TILE), ceil_div(a.shape[0], TILE)
    return _launch("v3_tiled.cu", "matmul_tiled", grid, (TILE, TILE), a, b, bias, activation, residual)


def v4_registers(a, b, bias=None, activation=None, residual=None):
    grid = ceil_div(b.shape[1], REGISTER_TILE), ceil_div(a.shape[0], REGISTER_TILE)
    return _launch("v4_registers.cu", "matmul_registers", grid, 256, a, b, bias, activation, residual)


def v5_pipelined(a, b, bias=None, activation=None, residual=None):
    return tiled(best_tile(a, b), a, b, bias, activation, residual)


def tiled(tile: Tile | tuple, a, b, bias=None, activation=None, residual=None):
    """v5 with a tile of TILES, or another: rows, cols and depth multiples of 4, tile_m of 4 * rows, tile_n of 8 * cols, depth of teams."""
    tile = Tile(*tile)
    by_rows = b.stride(1) == 1 or b.shape[1] == 1
    width = _width(a, b if by_rows else b.t(), bias, residual) if b.shape[1] % 4 == 0 else 1
    arguments = (a.dtype, activation_number(activation), *tile, str(by_rows).lower(), width)
    matmul = kernel(FOLDER / "v5_pipelined.cu", "matmul_pipelined", *arguments)
    blocks = ceil_div(a.shape[0], tile.tile_m) * ceil_div(b.shape[1], tile.tile_n)
    strides = (b.stride(0) if by_rows else b.stride(1),)
    return launch(matmul, blocks, tile.threads, a, b, strides, bias, residual, tile.shared_bytes)


def best_tile(a, b) -> Tile:
    """The tile of v5 whose tiles are done first, if each SM works through its share of them at the rate of their FMAs."""
    processors = torch.cuda.get_device_properties(a.device).multi_processor_count if a.is_cuda else 132  # the emulator plays an H200

    def instructions(tile: Tile) -> float:
        tiles = ceil_div(a.shape[0], tile.tile_m) * ceil_div(b.shape[1], tile.tile_n)
        return ceil_div(tiles, processors) * tile.tile_m * tile.tile_n / TILES[tile]

    return min(TILES, key=instructions)


def _width(*tensors) -> int:
    """4 if all rows of those that are there can be read 4 elements at a time, else 1."""
    return vector_width(4, *(tensor for tensor in tensors if tensor is not None))


def _launch(file: str, name: str, grid, block, a, b, bias, activation, residual):
    matmul = kernel(FOLDER / file, name, a.dtype, activation_number(activation))
    return launch(matmul, grid, block, a, b, b.stride(), bias, residual)


def _numba(a, b, bias=None, activation=None, residual=None) -> str | None:
    if not (bias is activation is residual is None):
        return "the Numba kernel multiplies, and nothing more"
    return numba_refusal(a, steps=a.numel() * b.shape[1])


def _at_most(rows: int | None = None, columns: int | None = None):
    """Refuses a result that takes more blocks along the grid's y than there can be."""

    def accepts(a, b, bias=None, activation=None, residual=None) -> str | None:
        if rows is not None and a.shape[0] > rows:
            return f"takes at most {rows} rows"
        if columns is not None and b.shape[1] > columns:
            return f"takes at most {columns} columns"
        return None

    return accepts


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "Numba CUDA: one thread an element, neighbours down a column", FOLDER / "v1_naive.py", _numba),
        Variant(
            "v1_naive_cuda",
            v1_naive_cuda,
            "CUDA C++: one thread an element, neighbours down a column",
            FOLDER / "v1_naive.cu",
            _at_most(columns=BLOCK[1] * MAX_GRID[1]),
        ),
        Variant(
            "v2_coalesced",
            v2_coalesced,
            "neighbours along a row: each load and store in one piece",
            FOLDER / "v2_coalesced.cu",
            _at_most(rows=BLOCK[1] * MAX_GRID[1]),
        ),
        Variant(
            "v3_tiled",
            v3_tiled,
            "tiles in shared memory: 32 times fewer bytes from global memory",
            FOLDER / "v3_tiled.cu",
            _at_most(rows=TILE * MAX_GRID[1]),
        ),
        Variant(
            "v4_registers",
            v4_registers,
            "8 x 8 elements a thread: 5 times fewer loads from shared memory",
            FOLDER / "v4_registers.cu",
            _at_most(rows=REGISTER_TILE * MAX_GRID[1]),
        ),
        Variant(
            "v5_pipelined",
            v5_pipelined,
            "16 bytes a load, and the next slice on its way while this one is multiplied",
            FOLDER / "v5_pipelined.cu",
        ),
        V6,
        V7,
        V8,
    )
}
