"""How each version of `cross_entropy` is launched, and on what it can run.

Each takes logits (rows, vocab) with dense rows and target (rows,) int64, and returns the losses (rows,) float32 and the gradient of their sum
times `scale` (a number, or a float32 tensor of one number or one a row), (rows, vocab), in `out` if that is given: it may be the logits.
v2 and v4 also leave log(sum(exp(logits))) in `lses` (rows,) float32, if that is given.
"""

from __future__ import annotations

import struct
from pathlib import Path

import torch

from labkernels.cuda.variants import ceil_div, hopper_refusal, kernel, vector_width
from labkernels.operation import Variant

FOLDER = Path(__file__).parent
SLICE_BYTES = 32 * 1024  # of a row in each block of v3, so that six blocks fit on a multiprocessor
MOST_SLICE_BYTES = 220 * 1024
MOST_BLOCKS = 8


def v1_naive(logits, target, scale=1.0, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, *, out=None, with_gradient=True):
    args, losses, gradient = _prepared(logits, target, scale, ignore_index, label_smoothing, z_loss, out, with_gradient)
    if len(losses):
        kernel(FOLDER / "v1_naive.cu", "cross_entropy_naive", logits.dtype)(ceil_div(len(losses), 4), 128, args(len(losses)))
    return losses, gradient


def v2_online(logits, target, scale=1.0, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, *, out=None, with_gradient=True, lses=None):
    args, losses, gradient = _prepared(logits, target, scale, ignore_index, label_smoothing, z_loss, out, with_gradient)
    width = _width(logits, gradient)
    threads = min(1024, 32 * ceil_div(logits.shape[1], 32 * width))
    if len(losses):
        kernel(FOLDER / "v2_online.cu", "cross_entropy_online", logits.dtype, width)(len(losses), threads, (*args(len(losses)), lses))
    return losses, gradient


def v3_cluster(logits, target, scale=1.0, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, *, out=None, with_gradient=True):
    return configured(best_blocks(logits), logits, target, scale, ignore_index, label_smoothing, z_loss, out=out, with_gradient=with_gradient)


def configured(
    blocks, logits, target, scale=1.0, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, *, out=None, with_gradient=True, threads=256
):  # fmt: skip
    """v3 with clusters of so many blocks (1, 2, 4 or 8)."""
    args, losses, gradient = _prepared(logits, target, scale, ignore_index, label_smoothing, z_loss, out, with_gradient)
    width, slice_ = _width(logits, gradient), _slice(logits, blocks)
    threads = min(threads, 32 * ceil_div(slice_, 32 * width))
    if len(losses):
        cross_entropy = kernel(FOLDER / "v3_cluster.cu", "cross_entropy_cluster", logits.dtype, width)
        cross_entropy(len(losses) * blocks, threads, args(slice_), slice_ * logits.element_size(), blocks)
    return losses, gradient


def v4_registers(logits, target, scale=1.0, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, *, out=None, with_gradient=True, lses=None):
    args, losses, gradient = _prepared(logits, target, scale, ignore_index, label_smoothing, z_loss, out, with_gradient)
    width = _width(logits, gradient)
    blocks, threads, vectors = in_registers(logits.shape[1], width)
    if len(losses):
        cross_entropy = kernel(FOLDER / "v4_registers.cu", "cross_entropy_registers", logits.dtype, width, vectors)
        cross_entropy(len(losses) * blocks, threads, (*args(len(losses)), lses), 0, blocks)
    return losses, gradient


def in_registers(vocab: int, width: int) -> tuple[int, int, int]:
    """Blocks of a cluster, threads of a block, and vectors of a thread, which holds 32 elements; more only where 8 blocks of 512 threads are not enough."""
    elements = 32
    while elements * 512 * MOST_BLOCKS < vocab:
        elements *= 2
    blocks = next((blocks for blocks in (1, 2, 4) if elements * 512 * blocks >= vocab), MOST_BLOCKS)
    return blocks, min(512, 32 * ceil_div(vocab, 32 * elements * blocks)), elements // width


def gradient_in_place(logits, first, vocab, target, lses, scale, ignore_index=-100, label_smoothing=0.0, z_loss=0.0) -> None:
    """Logits (rows, some of vocab), tokens `first` and on of rows whose log(sum(exp)) is known, become their gradients."""
    (rows, some), width = logits.shape, vector_width(16 // logits.element_size(), logits)
    options = struct.pack("<qff", ignore_index, label_smoothing, z_loss)
    if rows:
        threads = min(256, 32 * ceil_div(some, 32 * width))
        args = (logits, logits.stride(0), some, first, vocab, target.contiguous(), options, scale, scale.stride(0) if scale.numel() > 1 else 0, lses)
        kernel(FOLDER / "from_lse.cu", "gradient_from_lse", logits.dtype, width)(rows, threads, args)


def best_blocks(logits) -> int:
    """The fewest blocks that have at most SLICE_BYTES each."""
    return next((blocks for blocks in (1, 2, 4) if _slice(logits, blocks) * logits.element_size() <= SLICE_BYTES), MOST_BLOCKS)


def scale_in_place(x: torch.Tensor, factor: torch.Tensor) -> None:
    """x *= factor, a float32 tensor of one number, for a contiguous x; next to nothing where factor is 1."""
    if not x.numel():
        return
    width = vector_width(16 // x.element_size(), x.view(-1))
    blocks = min(1024, ceil_div(x.numel(), 256 * width))
    kernel(FOLDER / "scale.cu", "scale_unless_one", x.dtype, width)(blocks, 256, (x, factor, x.numel()))


def _prepared(logits, target, scale, ignore_index, label_smoothing, z_loss, out, with_gradient):
    """The kernels' arguments, but for one in the middle; and the two results."""
    rows, vocab = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    gradient = None
    if with_gradient:
        gradient = torch.empty((rows, vocab), dtype=logits.dtype, device=logits.device) if out is None else out
    if not isinstance(scale, torch.Tensor):
        scale = torch.full((1,), scale, dtype=torch.float32, device=logits.device)
    options = struct.pack("<qff", ignore_index, label_smoothing, z_loss)
    first = (logits, logits.stride(0), gradient, 0 if gradient is None else gradient.stride(0))
    last = (vocab, target.contiguous(), options, scale, scale.stride(0) if scale.dim() and scale.numel() > 1 else 0, losses)
    return lambda number: (*first, number, *last), losses, gradient


def _width(logits, gradient) -> int:
    return vector_width(16 // logits.element_size(), *(tensor for tensor in (logits, gradient) if tensor is not None))


def _slice(logits, blocks: int) -> int:
    """Elements of a row that each block has: a multiple of 8."""
    return 8 * ceil_div(logits.shape[1], 8 * blocks)


def _dense_rows(logits, *_, **__) -> str | None:
    return None if logits.stride(1) == 1 or logits.shape[1] == 1 else "takes rows whose elements are neighbours in memory"


def _fits_a_cluster(logits, *_, **__) -> str | None:
    if _slice(logits, MOST_BLOCKS) * logits.element_size() > MOST_SLICE_BYTES:
        return f"takes rows that fit into the shared memory of {MOST_BLOCKS} blocks, {logits.shape[1]} logits do not"
    return hopper_refusal(logits) or _dense_rows(logits)


def _fits_registers(logits, *_, out=None, **__) -> str | None:
    if logits.shape[1] > 64 * 512 * MOST_BLOCKS:
        return f"takes rows of at most {64 * 512 * MOST_BLOCKS} logits, 64 a thread"
    if _width(logits, out) == 1:
        return "takes rows that can be read and written 16 bytes at a time"
    return hopper_refusal(logits)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v1_naive", v1_naive, "one warp a row walks over it three times", FOLDER / "v1_naive.cu", _dense_rows),
        Variant("v2_online", v2_online, "one block a row, 16 bytes a load, a running maximum and sum", FOLDER / "v2_online.cu", _dense_rows),
        Variant(
            "v3_cluster",
            v3_cluster,
            "the row stays in the shared memory of a cluster: one read, one write",
            FOLDER / "v3_cluster.cu",
            _fits_a_cluster,
        ),
        Variant(
            "v4_registers",
            v4_registers,
            "the row stays in the registers of a cluster, and so does each exponential",
            FOLDER / "v4_registers.cu",
            _fits_registers,
        ),
    )
}
