"""v6 of `linear_cross_entropy`: chunks whose logits leave their matmul as exponentials, in memory that is partly borrowed from dweight.

A chunk's exponentials lie in two places: the columns from 0 on in the last rows of dweight, which are made at the end, the others in scratch memory.
At the end a block of the vocabulary at a time has all tokens' probabilities computed again, for the rows of dweight that were borrowed.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import torch

from labkernels.cuda.tensor_map import tensor_map
from labkernels.cuda.variants import ceil_div, kernel, processors, vector_width
from labkernels.matmul import hopper

FOLDER = Path(__file__).parent
ROWS, WIDEST, DEPTH, THREADS = 128, 256, 64, 384  # as in tiles.cuh
SHARED = {columns: stages * (128 + columns) * 128 + 4 * 64 * 128 + 16 * stages for columns, stages in ((256, 4), (192, 4), (128, 6))}
TILING = {"exponentials": (256, 2), "probabilities": (256, 2), "add_to_dx": (256, 2), "add_to_dweight": (256, 2)}  # columns of a tile, and the lag
COLUMNS = 768  # in multiples of which columns are borrowed
EPILOGUE = 4.5  # stages of 64 of k, about, that a tile of dweight costs beside its own; for a hidden size of 2048, 768 tokens, as measured
SCRATCH_SHARE = 10  # of the weight's size is what there is beside the gradients, about
LEAST_SCRATCH = 1 << 20  # elements
BAND = 16


class Layout(NamedTuple):
    """Tokens of a chunk; columns of its exponentials that are borrowed; rows of dweight that are made chunk by chunk; elements of scratch memory;
    tokens of the vocabulary that a block at the end has."""

    chunk: int
    borrowed: int
    at_once: int
    scratch: int
    block: int

    @classmethod
    def of(cls, tokens: int, hidden: int, vocab: int, chunk: int | None = None, scratch: int | None = None, processors: int = 132) -> Layout:
        scratch = scratch or max(LEAST_SCRATCH, vocab * hidden // SCRATCH_SHARE)
        chunk = max(1, min(chunk or _best_chunk(hidden), tokens, hidden // 2 + scratch // vocab))
        borrowed = max(0, ceil_div(vocab - scratch // chunk // 8 * 8, COLUMNS) * COLUMNS)
        borrowed = min(borrowed, vocab // COLUMNS * COLUMNS)
        chunk = min(chunk, hidden) if borrowed else chunk  # then dweight has room for all that is borrowed
        at_once = max(0, vocab - ceil_div(chunk * borrowed, hidden)) // 8 * 8
        scratch = max(chunk * (vocab - borrowed), min(scratch, tokens * (vocab - at_once)), tokens * min(8, vocab - at_once))
        return cls(chunk, borrowed, at_once, scratch, _best_block(tokens, hidden, max(8, scratch // tokens // 8 * 8), processors))


def _best_chunk(hidden: int) -> int:
    """Tokens: more make fewer tiles of dweight, EPILOGUE / (chunk / 64) of a product, and have more computed again, chunk / hidden of a product."""
    return max(ROWS, round((EPILOGUE * DEPTH * hidden) ** 0.5 / ROWS) * ROWS)


def _best_block(tokens: int, hidden: int, most: int, processors: int) -> int:
    """Of up to `most` rows of dweight, as many as cost the least each: both products are made in tiles, and each wave of tiles takes its time."""

    def cost(rows: int) -> float:
        of_gradient, of_logits = ceil_div(rows, ROWS) * ceil_div(hidden, WIDEST), ceil_div(tokens, ROWS) * ceil_div(rows, WIDEST)
        return (ceil_div(of_gradient, processors) * ceil_div(tokens, DEPTH) + ceil_div(of_logits, processors) * ceil_div(hidden, DEPTH)) / rows

    return min((*range(ROWS, min(most, 8192) + 1, ROWS), most), key=lambda rows: (cost(rows), -rows))


def in_fused_chunks(x, weight, target, scale, ignore_index=-100, layout: Layout | None = None):
    """The losses (tokens,) float32, and the gradients of their sum times scale (a float32 tensor: one number, or one a token) of x and weight."""
    (tokens, hidden), vocab = x.shape, weight.shape[0]
    layout = layout or Layout.of(tokens, hidden, vocab)
    chunk, borrowed, at_once, _, _ = layout
    float32 = {"dtype": torch.float32, "device": x.device}
    shifts, losses, lses, factors = torch.empty((4, tokens), **float32)
    tiles = ceil_div(vocab, TILING["exponentials"][0])
    dx, dweight = torch.empty((tokens, hidden), dtype=x.dtype, device=x.device), torch.empty((vocab, hidden), dtype=x.dtype, device=x.device)
    scratch = torch.empty(layout.scratch, dtype=x.dtype, device=x.device)
    sums, scaled = torch.empty(tiles * chunk, **float32), torch.empty((chunk, hidden), dtype=x.dtype, device=x.device)
    of_dx = torch.zeros((chunk, hidden), **float32)
    chunks = range(0, tokens, chunk)
    raises, again = torch.empty(tokens, dtype=torch.int32, device=x.device), torch.zeros(len(chunks), dtype=torch.int32, device=x.device)
    step = scale.stride(0) if scale.numel() > 1 else 0
    target = target.contiguous()
    width = vector_width(16 // x.element_size(), x, weight)

    def rows(name):
        return kernel(FOLDER / "rows.cu", name, x.dtype, width)

    rows("shifts_of_rows")(
        ceil_div(tokens, 8), 256, (x, x.stride(0), weight, weight.stride(0), tokens, hidden, vocab, target, ignore_index, shifts, raises)
    )
    for number, begin in enumerate(chunks):
        part = slice(begin, min(begin + chunk, tokens))
        some = part.stop - begin
        low = dweight[at_once:].view(-1)[: some * borrowed].view(some, borrowed)
        high = scratch[: some * (vocab - borrowed)].view(some, vocab - borrowed)
        _exponentials(x[part], weight, low, high, shifts[part], sums, raises[part], again[number : number + 1])
        args = (x[part], x.stride(0), scaled, hidden, shifts[part], raises[part], scale[part] if step else scale, step)
        rows("finish_rows")(some, 256, (sums, tiles, some, *args, losses[part], lses[part], factors[part]))
        _add_to_dx(of_dx[:some], low, high, weight)
        args = (dx[part], weight, weight.stride(0), hidden, vocab, target[part], ignore_index, factors[part], scale[part] if step else scale, step)
        rows("finish_dx")(some, 256, (of_dx, *args))
        _add_to_dweight(dweight[:at_once], low, high, scaled[:some], begin > 0)
    for begin in range(at_once, vocab, layout.block):
        part = slice(begin, min(begin + layout.block, vocab))
        block = scratch[: tokens * (part.stop - begin)].view(tokens, part.stop - begin)
        _probabilities(block, x, weight[part], lses, scale, step)
        torch.mm(block.t(), x, out=dweight[part])
    args = (dweight, x, x.stride(0), tokens, hidden, vocab, target, torch.argsort(target, stable=True), ignore_index, scale, step)
    rows("finish_dweight")(tokens, 256, args)
    return losses, dx, dweight


def _exponentials(x, weight, low, high, shifts, sums, raises, again) -> None:
    (m, k), n, columns = x.shape, len(weight), TILING["exponentials"][0]
    args = (_map(x, ROWS), _map(weight, columns), *_maps(low, high, (64, 64)), m, n, k, low.shape[1], BAND, shifts, sums, raises, again)
    for second in (0, 1):
        _launch("exponentials.cu", "exponentials", x, m, n, (*args, second))


def _probabilities(out, x, weight, lses, scale, step) -> None:
    (m, k), n, columns = x.shape, len(weight), TILING["probabilities"][0]
    args = (_map(x, ROWS), _map(weight, columns), _map(out, 64), m, n, k, BAND, lses, scale, step)
    _launch("exponentials.cu", "probabilities", x, m, n, args)


def _add_to_dx(sums, low, high, weight) -> None:
    """sums += (low | high) weight, float32."""
    (m, n), k, columns = sums.shape, len(weight), TILING["add_to_dx"][0]
    shares = _shares(ceil_div(m, ROWS) * ceil_div(n, columns), ceil_div(k, DEPTH), processors(sums))
    maps = (*_maps(low, high, (ROWS, DEPTH)), _map(weight, DEPTH), tensor_map(sums, (64, 32), 128))
    _launch("gradients.cu", "add_to_dx", weight, m, n, (*maps, m, n, k, low.shape[1], shares, BAND), shares=shares)


def _add_to_dweight(dweight, low, high, x, add: bool) -> None:
    """dweight += (low | high)^T x, as far as it goes; without `add`, =."""
    (m, n), k = dweight.shape, len(x)
    if m:
        args = (*_maps(low, high, (DEPTH, 64)), _map(x, DEPTH), _map(dweight, 64), m, n, k, low.shape[1], BAND)
        _launch("gradients.cu", "add_to_dweight", x, m, n, args, "true" if add else "false")


def _launch(file: str, name: str, beside, m: int, n: int, args: tuple, *flags: str, shares: int = 1) -> None:
    columns, lag = TILING[name]
    blocks = min(processors(beside), ceil_div(m, ROWS) * ceil_div(n, columns) * shares)
    kernel(FOLDER / file, name, beside.dtype, *flags, columns, lag)(blocks, THREADS, args, SHARED[columns])


@functools.lru_cache(256)
def _shares(tiles: int, steps: int, blocks: int) -> int:
    """Into how many parts to cut each tile's k, so that the busiest block has the least to do; a part costs three stages beside its own."""
    return min(range(1, min(steps, 16) + 1), key=lambda shares: ceil_div(tiles * shares, blocks) * (ceil_div(steps, shares) + 3))


def _maps(low, high, box: tuple[int, int]) -> list:
    """Of both; of the other one in the place of one that is empty."""
    return [tensor_map(each if each.shape[1] else other, box, 128) for each, other in ((low, high), (high, low))]


def _map(matrix: torch.Tensor, rows: int):
    """Boxes of so many rows and 128 bytes."""
    return tensor_map(matrix, (rows, DEPTH), 128)


def accepts(x, weight, target, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, reduction="mean") -> str | None:
    if x.dtype != torch.bfloat16:
        return "takes bfloat16, which has the range of exponentials"
    if label_smoothing or z_loss:
        return "takes no label_smoothing and no z_loss"
    if not len(x):
        return "takes at least one token"
    if x.shape[1] % 8:
        return "takes a hidden size of a multiple of 8"
    if x.stride(1) != 1 or weight.stride(1) != 1:  # matmul takes columns, too
        return "takes x and weight whose rows are dense in memory"
    return hopper.accepts(x, weight.t())
