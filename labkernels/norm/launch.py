"""How the kernels of the norms are launched: every operation here is one of them with other options.

Forward: `naive`, `registers` and `ring` take a `Problem` and return (y, sum, scale), of which the operation has some. Backward: the same
three names with `_backward` return (dx, dweight, dshift).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from labkernels.cuda.kernel import Kernel
from labkernels.cuda.variants import c_type, ceil_div, kernel, processors, vector_width

FOLDER = Path(__file__).parent
WARPS = 4  # a block, where a warp owns a row
ELEMENTS = 16  # of a row that one thread holds
SUMS = 8  # the same in v3's backward pass, where each element has a sum beside it, or two
RMS, LAYER = 0, 1  # the kernels' Norm
NARROW = {torch.float8_e4m3fn: "__nv_fp8_e4m3", torch.int8: "signed char"}
SHARED_BYTES = 227 * 1024  # of one multiprocessor of Hopper, at most
ROUNDS = 8  # blocks of v3_ring for each that runs at a time: who is done early takes another one
SLICES = 32  # warps of a block that adds up partial sums


@dataclass(frozen=True)
class Problem:
    """One norm of the rows of x (rows, cols). `out_dtype` is x's own, or a narrow one with a scale a row."""

    kind: int
    x: torch.Tensor
    weight: torch.Tensor | None
    eps: float
    shift: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    out_dtype: torch.dtype | None = None

    @property
    def weight_dtype(self) -> torch.dtype:
        given = self.weight if self.weight is not None else self.shift
        return self.x.dtype if given is None else given.dtype

    @property
    def types(self) -> tuple[str, ...]:
        """The kernels' first template arguments."""
        add = "true" if self.residual is not None else "false"
        out = NARROW.get(self.out_dtype) or c_type(self.x.dtype)
        return str(self.kind), add, c_type(self.x.dtype), c_type(self.weight_dtype), out

    @property
    def rows_read(self) -> tuple[torch.Tensor, ...]:
        """What is read row by row."""
        return (self.x,) if self.residual is None else (self.x, self.residual)

    @property
    def read(self) -> tuple[torch.Tensor, ...]:
        """Every tensor that is read."""
        return tuple(tensor for tensor in (*self.rows_read, self.weight, self.shift, self.bias) if tensor is not None)

    def results(self) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        rows, cols = self.x.shape
        y = torch.empty((rows, cols), dtype=self.out_dtype or self.x.dtype, device=self.x.device)
        total = torch.empty((rows, cols), dtype=self.x.dtype, device=self.x.device) if self.residual is not None else None
        scale = torch.empty((rows, 1), dtype=torch.float32, device=self.x.device) if self.out_dtype is not None else None
        return y, total, scale

    def arguments(self, results) -> tuple:
        y, total, scale = results
        tensors = (self.x, self.residual, self.bias, self.weight, self.shift, y, total, scale)
        residual_stride = 0 if self.residual is None else self.residual.stride(0)
        return (*tensors, *self.x.shape, self.x.stride(0), residual_stride, self.eps)

    @property
    def width(self) -> int:
        """How many elements a memory instruction can take: 16 bytes of x, or 1 where something lies askew."""
        return vector_width(16 // self.x.element_size(), *self.read)


def naive(problem: Problem):
    results = problem.results()
    rows, cols = problem.x.shape
    if rows and cols:
        *tensors_and_sizes, x_stride, residual_stride, eps = problem.arguments(results)
        residual_step = 0 if problem.residual is None else problem.residual.stride(1)
        args = (*tensors_and_sizes, x_stride, problem.x.stride(1), residual_stride, residual_step, eps)
        kernel(FOLDER / "v1_naive.cu", "norm_naive", *problem.types)(ceil_div(rows, WARPS), 32 * WARPS, args)
    return results


def row_threads(cols: int, most: int = 1024) -> int | None:
    """How many threads own a row: a warp, or as many warps as it takes; None where that is more than `most`."""
    threads = 32 * ceil_div(cols, 32 * ELEMENTS)
    return threads if threads <= most else None


def registers(problem: Problem):
    results = problem.results()
    rows, cols = problem.x.shape
    if not (rows and cols):
        return results
    width = problem.width
    threads = row_threads(cols, 1024 if width > 1 else 512)
    if threads is None:
        launched, rows_per_block, threads = kernel(FOLDER / "v2_registers.cu", "norm_streamed", *problem.types, width), 1, 1024
    else:
        launched = kernel(FOLDER / "v2_registers.cu", "norm_registers", *problem.types, threads, ELEMENTS // width, width)
        rows_per_block = WARPS if threads == 32 else 1
    launched(ceil_div(rows, rows_per_block), threads * rows_per_block, problem.arguments(results))
    return results


def packed_threads(problem: Problem) -> tuple[int, int, int]:
    """Threads a row, vectors of 16 bytes a thread, and blocks a multiprocessor: half of the threads that it takes to all of them, as was fastest on
    an H200. Two vectors a thread; more, where a block would have more than 512 threads."""
    cols, size = problem.x.shape[1], problem.x.element_size()
    vectors = 2
    while (threads := 32 * ceil_div(cols * size, 32 * 16 * vectors)) > (512 if vectors == 2 else 1024):
        vectors *= 2
    held = (problem.out_dtype is not None) + (problem.residual is not None)  # what else there is to hold in registers
    full = held == 0 and size == 2 and (problem.kind == LAYER or threads > 256)
    most = 1024 if vectors > 2 or held == 2 or held and size == 4 else 2048 if full else 1536
    return threads, vectors, max(1, most // max(128, threads))


def packed(problem: Problem, layout: tuple[int, int, int] | None = None):
    results = problem.results()
    rows, cols = problem.x.shape
    if rows and cols:
        threads, vectors, blocks = layout or packed_threads(problem)
        made = _made("v4_packed.cu", "norm_packed", (*problem.types, threads, vectors, 16 // problem.x.element_size(), blocks))
        rows_per_block = WARPS if threads == 32 else 1
        made(ceil_div(rows, rows_per_block), threads * rows_per_block, problem.arguments(results), early=True)  # it waits for the kernel before itself
    return results


@dataclass(frozen=True)
class Ring:
    """How a ring is laid out: threads and elements a thread for a row, stages, rows at a time in a block (groups), blocks a multiprocessor."""

    threads: int
    elements: int
    stages: int
    groups: int
    blocks: int


@functools.lru_cache(256)
def forward_ring(cols: int, item_bytes: int, inputs: int) -> Ring:
    """The ring of v3_ring for rows of `cols` elements, of which `inputs` tensors bring one each."""
    threads = max(64, 32 * ceil_div(cols, 32 * ELEMENTS))
    return Ring(threads, ELEMENTS, 2, 1, max(1, min(768 // threads, SHARED_BYTES // (2 * inputs * (cols * item_bytes + 512)))))


@functools.lru_cache(256)
def backward_ring(cols: int, item_bytes: int, inputs: int, kind: int = RMS) -> Ring:
    """The ring of v3_ring's backward pass: some 64 KB on their way on each multiprocessor. More of them made it slower on an H200."""
    threads = max(64, 32 * ceil_div(cols, 32 * SUMS))
    if inputs == 3:
        return Ring(threads, SUMS, 3 if threads <= 512 else 2, 1, max(1, 512 // threads))
    groups = 2 if threads <= 512 and kind == RMS else 1
    return Ring(threads, SUMS, 2, groups, max(1, (1024 if item_bytes == 2 else 768) // (threads * groups)))


def too_long(x: torch.Tensor, elements: int = ELEMENTS) -> str | None:
    return f"takes rows of at most {elements * 1024} elements, what a block has registers for" if x.shape[1] > elements * 1024 else None


def ring_refusal(x: torch.Tensor, width: int, inputs: int, elements: int = ELEMENTS) -> str | None:
    """Why rows of `inputs` tensors like x, of which `width` elements can be read at a time, cannot come into a ring, or None."""
    if width == 1:
        return "takes rows that lie on multiples of 16 bytes, and a weight that does"
    if too_long(x, elements):
        return too_long(x, elements)
    if x.shape[1] * x.element_size() * inputs * 2 > SHARED_BYTES:
        return "takes rows of which two fit into shared memory"
    return None


def ring(problem: Problem, layout: Ring | None = None):
    results = problem.results()
    rows, cols = problem.x.shape
    if not (rows and cols):
        return results
    size, inputs = problem.x.element_size(), len(problem.rows_read)
    layout = layout or forward_ring(cols, size, inputs)
    width = 16 // size
    sizes = (layout.threads, layout.elements // width, width, layout.stages, layout.blocks)
    blocks = min(rows, processors(problem.x) * layout.blocks * ROUNDS)
    shared = layout.stages * inputs * cols * size
    _made("v3_ring.cu", "norm_ring", (*problem.types, *sizes))(blocks, layout.threads, problem.arguments(results), shared)
    return results


@functools.lru_cache(None)
def _made(file: str, name: str, arguments: tuple) -> Kernel:
    return Kernel(FOLDER / file, f"{name}<{', '.join(map(str, arguments))}>")


@dataclass(frozen=True)
class Backward:
    """The gradient of one norm of the rows of x (rows, cols). `added` is a gradient that is added to dx, or None."""

    kind: int
    gradient: torch.Tensor
    x: torch.Tensor
    weight: torch.Tensor | None
    eps: float
    added: torch.Tensor | None = None

    @property
    def weight_dtype(self) -> torch.dtype:
        return self.x.dtype if self.weight is None else self.weight.dtype

    @property
    def types(self) -> tuple[str, ...]:
        return c_type(self.x.dtype), c_type(self.weight_dtype)

    @property
    def read(self) -> tuple[torch.Tensor, ...]:
        return tuple(tensor for tensor in (self.gradient, self.x, self.weight, self.added) if tensor is not None)

    @property
    def width(self) -> int:
        return vector_width(16 // self.x.element_size(), *self.read)

    def results(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        rows, cols = self.x.shape
        like = {"dtype": self.weight_dtype, "device": self.x.device}
        dx = torch.empty((rows, cols), dtype=self.x.dtype, device=self.x.device)
        sums = torch.empty if rows else torch.zeros
        return dx, sums(cols, **like), sums(cols, **like) if self.kind == LAYER else None

    def partial(self, owners: int) -> torch.Tensor:
        return torch.empty((1 + self.kind, owners, self.x.shape[1]), dtype=torch.float32, device=self.x.device)


def naive_backward(problem: Backward):
    results = dx, dweight, dshift = problem.results()
    rows, cols = problem.x.shape
    if rows and cols:
        statistics = torch.empty((rows, 2), dtype=torch.float32, device=dx.device)
        strides = (*problem.gradient.stride(), *problem.x.stride())
        tensors = (problem.gradient, problem.x, problem.weight, problem.added, dx, statistics)
        by_row = _made("v1_backward.cu", "norm_backward_rows", (problem.kind, *problem.types))
        by_row(ceil_div(rows, WARPS), 32 * WARPS, (*tensors, rows, cols, *strides, problem.eps))
        by_column = _made("v1_backward.cu", "norm_backward_columns", problem.types)
        by_column(ceil_div(cols, 128), 128, (problem.gradient, problem.x, statistics, dweight, dshift, rows, cols, *strides))
    return results


def _add_up(problem: Backward, partial: torch.Tensor, dweight, dshift) -> None:
    kinds, count, cols = partial.shape
    made = _made("v2_backward.cu", "sum_partials", (problem.types[1], SLICES))
    grid, block, args = (ceil_div(cols, 32), kinds), (32, SLICES), (partial, dweight, dshift, count, cols)
    made(grid, block, args, early=True)  # it waits for the partial sums itself


def registers_backward(problem: Backward, blocks: int | None = None):
    rows, cols = problem.x.shape
    threads = row_threads(cols, 512)  # more would have too few registers for the sums
    if threads is None:
        return _streamed_backward(problem)
    results = dx, dweight, dshift = problem.results()
    if not (rows and cols):
        return results
    width, rows_per_block = problem.width, WARPS if threads == 32 else 1
    blocks = blocks or max(1, 512 // (threads * rows_per_block))
    blocks = min(ceil_div(rows, rows_per_block), processors(dx) * blocks)
    partial = problem.partial(blocks * rows_per_block)
    made = _made("v2_backward.cu", "norm_backward_registers", (problem.kind, *problem.types, threads, ELEMENTS // width, width))
    tensors = (problem.gradient, problem.x, problem.weight, problem.added, dx, partial)
    made(blocks, threads * rows_per_block, (*tensors, rows, cols, problem.gradient.stride(0), problem.x.stride(0), problem.eps))
    _add_up(problem, partial, dweight, dshift)
    return results


def _streamed_backward(problem: Backward):
    results = dx, dweight, dshift = problem.results()
    rows, cols = problem.x.shape
    if not rows:
        return results
    statistics = torch.empty((rows, 2), dtype=torch.float32, device=dx.device)
    strides = (problem.gradient.stride(0), problem.x.stride(0))
    by_row = _made("v2_backward.cu", "norm_backward_streamed", (problem.kind, *problem.types, problem.width))
    by_row(rows, 1024, (problem.gradient, problem.x, problem.weight, problem.added, dx, statistics, cols, *strides, problem.eps))
    chunk_rows = ceil_div(rows, max(1, min(128, rows // 8)))
    partial = problem.partial(ceil_div(rows, chunk_rows))
    by_column = _made("v2_backward.cu", "norm_backward_chunks", problem.types[:1])
    args = (problem.gradient, problem.x, statistics, partial, problem.kind == LAYER, rows, cols, chunk_rows, *strides)
    by_column((ceil_div(cols, 256), partial.shape[1]), 256, args)
    _add_up(problem, partial, dweight, dshift)
    return results


def ring_backward(problem: Backward, layout: Ring | None = None):
    results = dx, dweight, dshift = problem.results()
    rows, cols = problem.x.shape
    if not (rows and cols):
        return results
    size, inputs = problem.x.element_size(), 2 if problem.added is None else 3
    layout = layout or backward_ring(cols, size, inputs, problem.kind)
    width = 16 // size
    sizes = (layout.threads, layout.elements // width, width, layout.stages, layout.groups, layout.blocks)
    blocks = min(ceil_div(rows, layout.groups), processors(dx) * layout.blocks)
    partial = problem.partial(blocks)
    made = _made("v3_backward.cu", "norm_backward_ring", (problem.kind, "true" if inputs == 3 else "false", *problem.types, *sizes))
    tensors = (problem.gradient, problem.x, problem.weight, problem.added, dx, partial)
    args = (*tensors, rows, cols, problem.gradient.stride(0), problem.x.stride(0), problem.eps)
    made(blocks, layout.threads * layout.groups, args, layout.groups * layout.stages * inputs * cols * size)
    _add_up(problem, partial, dweight, dshift)
    return results
