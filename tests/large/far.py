"""What the tests of large tensors share: views whose last elements lie past 2^31, on memory that is mostly never touched, and results compared piece by piece."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from labkernels.operation import Op, Variant

PAST = 2**31  # elements: where an index of 32 bits becomes negative
BYTES = 30 * 2**30  # that a test takes of a GPU, at most
PIECE = 2**26  # elements that are compared at once


class Memory:
    """One stretch of memory for one view after another: an H200 takes tens of milliseconds for a new one. On the CPU what is not touched costs addresses only."""

    def __init__(self, device: str):
        self.bytes = torch.empty(0, dtype=torch.uint8, device=device)

    def far(self, tensor: torch.Tensor, axis: int) -> torch.Tensor:
        """A view with the values of `tensor`, the last along `axis` at least PAST elements behind the first. It holds until the next one is made."""
        order = [axis, *(other for other in range(tensor.dim()) if other != axis)]
        dense = tensor.permute(order).contiguous()
        step = -(-PAST // (len(dense) - 1) // 64) * 64  # rows stay on multiples of 16 bytes
        memory = self._of((step * (len(dense) - 1) + dense[0].numel()) * tensor.element_size()).view(tensor.dtype)
        return memory.as_strided(dense.shape, (step, *dense.stride()[1:])).copy_(dense).permute([order.index(other) for other in range(tensor.dim())])

    def _of(self, needed: int) -> torch.Tensor:
        if len(self.bytes) < needed:
            device, needed = self.bytes.device, (needed + 2**24) // 16 * 16
            self.bytes = self.bytes[:0].clone()
            need_room(device, needed)
            self.bytes = torch.empty(needed, dtype=torch.uint8, device=device)
        return self.bytes[: needed // 16 * 16 + 16]


def need_room(device: torch.device, needed: int) -> None:
    """Skip the test where the GPU has not so many bytes free."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
        if free < needed + 2**30:
            pytest.skip(f"needs {needed / 2**30:.0f} GiB of GPU memory, {free / 2**30:.0f} are free")


def in_cuda_cpp(op: Op) -> list[Variant]:
    return [variant for variant in op.variants.values() if variant.source is None or variant.source.suffix != ".py"]


def places(op: Op, dtype: torch.dtype, device: str) -> Iterator[tuple[dict, str, int, Variant]]:
    """Each input, each axis of it and each variant once, with the first inputs among the operation's that the variant accepts."""
    seen = set()
    for shape in op.check_shapes:
        inputs = op.make_inputs(torch.Generator().manual_seed(0), torch.device(device), dtype, **shape)
        for variant in in_cuda_cpp(op):
            if variant.accepts(**inputs) is not None:
                continue
            for name, tensor in inputs.items():
                for axis in range(tensor.dim() if isinstance(tensor, torch.Tensor) else 0):
                    if tensor.shape[axis] > 1 and (variant.name, name, axis) not in seen:
                        seen.add((variant.name, name, axis))
                        yield inputs, name, axis, variant


def assert_same(got: torch.Tensor, want: torch.Tensor, what: str = "") -> None:
    """As close as two orders of summation are. What is read or written at a wrong place errs by the size of the numbers."""
    assert got.shape == want.shape and got.dtype == want.dtype, what
    if not got.is_floating_point():
        assert torch.equal(got, want), what
        return
    got, want = got.float(), want.float()
    assert torch.equal(got.isnan(), want.isnan()), what
    got, want = got.nan_to_num(), want.nan_to_num()
    distance, size = (got - want).abs().max().item(), want.abs().max().item()
    assert distance <= 0.02 * size + 1e-6, f"{what}: off by {distance:.3g}, where the largest is {size:.3g}"


def assert_repeats(got: torch.Tensor, small: torch.Tensor, axis: int, scale: float = 1.0, what: str = "") -> None:
    """`got` is `small` times `scale`, again and again along `axis`; every element is looked at."""
    each = small.shape[axis]
    assert got.shape[axis] % each == 0 and got.dtype == small.dtype, what
    want, size = small.double() * scale, max(small.abs().max().double().item() * scale, 1e-9)
    at_once = max(1, PIECE // small.numel())
    worst = torch.zeros((), dtype=torch.float64, device=got.device)
    for first in range(0, got.shape[axis], at_once * each):
        piece = got.narrow(axis, first, min(at_once * each, got.shape[axis] - first)).unflatten(axis, (-1, each))
        errors = (piece.float() - want.float().unsqueeze(axis)).abs().nan_to_num(torch.inf)
        worst = torch.maximum(worst, errors.max().double())
    assert worst.item() <= 0.02 * size, f"{what}: off by {worst.item():.3g}, where the largest is {size:.3g}"
