"""The ladders of the forward norms: the same three kernels, with the options that make each operation of them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from labkernels.cuda.variants import hopper_refusal
from labkernels.norm import launch
from labkernels.norm.launch import FOLDER, LAYER, RMS, Problem
from labkernels.operation import Variant

IDEAS = {
    "v1_naive": "a warp a row, which it reads once for each thing it must know",
    "v2_registers": "the row is read once and stays in registers",
    "v3_ring": "blocks stay; rows come by bulk copies into a ring of shared memory, always some on their way",
    "v4_packed": "a row waits in half the registers, so that a multiprocessor is full of threads",
}
LAUNCHERS = {"v1_naive": launch.naive, "v2_registers": launch.registers, "v3_ring": launch.ring, "v4_packed": launch.packed}


def rms_norm_problem(x, weight=None, eps=1e-5) -> Problem:
    return Problem(RMS, x, weight, eps)


def layer_norm_problem(x, weight=None, bias=None, eps=1e-5) -> Problem:
    return Problem(LAYER, x, weight, eps, shift=bias)


def add_rms_norm_problem(x, residual, weight=None, bias=None, eps=1e-5) -> Problem:
    return Problem(RMS, x, weight, eps, residual=residual, bias=bias)


def rms_norm_quantized_problem(x, weight=None, eps=1e-5, dtype=torch.float8_e4m3fn, residual=None, bias=None) -> Problem:
    return Problem(RMS, x, weight, eps, residual=residual, bias=bias, out_dtype=dtype)


def _first(y, total, scale):
    return y


def _with_sum(y, total, scale):
    return y, total


def _quantized(y, total, scale):
    return (y, scale) if total is None else (y, scale, total)


def _ladder(problem_of: Callable[..., Problem], results: Callable) -> dict[str, Variant]:
    def variant(name: str) -> Variant:
        def fn(*tensors, **options):
            return results(*LAUNCHERS[name](problem_of(*tensors, **options)))

        fn.__name__, fn.__doc__ = name, IDEAS[name]
        fn.__wrapped__ = problem_of  # whose signature it has

        def accepts(*tensors, **options) -> str | None:
            return REFUSALS[name](problem_of(*tensors, **options))

        return Variant(name, fn, IDEAS[name], FOLDER / f"{name}.cu", accepts)

    return {name: variant(name) for name in LAUNCHERS}


def _dense_rows(problem: Problem) -> str | None:
    apart = any(tensor.stride(1) != 1 and tensor.shape[1] > 1 for tensor in problem.rows_read)
    return "takes rows whose elements are neighbours in memory" if apart else None


def _on_hopper(problem: Problem) -> str | None:
    return _dense_rows(problem) or launch.ring_refusal(problem.x, problem.width, len(problem.rows_read)) or hopper_refusal(problem.x)


def _packed(problem: Problem) -> str | None:
    if problem.width == 1:
        return _dense_rows(problem) or "takes rows that lie on multiples of 16 bytes, and a weight that does"
    if problem.out_dtype is not None and problem.x.shape[1] >= 4096 and _on_hopper(problem) is None:
        return "takes fewer than 4096 columns where the result is 8 bits and v3_ring takes them: that is faster"
    return launch.too_long(problem.x)


REFUSALS = {"v1_naive": lambda problem: None, "v2_registers": _dense_rows, "v3_ring": _on_hopper, "v4_packed": _packed}
RMS_NORM = _ladder(rms_norm_problem, _first)
LAYER_NORM = _ladder(layer_norm_problem, _first)
ADD_RMS_NORM = _ladder(add_rms_norm_problem, _with_sum)
RMS_NORM_QUANTIZED = _ladder(rms_norm_quantized_problem, _quantized)
