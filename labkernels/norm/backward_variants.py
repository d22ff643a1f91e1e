"""The ladders of the norms' gradients."""

from __future__ import annotations

from collections.abc import Callable

from labkernels.cuda.variants import hopper_refusal
from labkernels.norm import launch
from labkernels.norm.launch import FOLDER, LAYER, RMS, Backward
from labkernels.operation import Variant

IDEAS = {
    "v1_naive": "a warp a row for dx, a thread a column for dweight: both read everything",
    "v2_registers": "one pass: what a row adds to dweight stays in registers, and is summed in a fixed order at the end",
    "v3_ring": "rows of x and of the gradient come by bulk copies into a ring of shared memory",
}
FILES = {"v1_naive": "v1_backward.cu", "v2_registers": "v2_backward.cu", "v3_ring": "v3_backward.cu"}
LAUNCHERS = {"v1_naive": launch.naive_backward, "v2_registers": launch.registers_backward, "v3_ring": launch.ring_backward}


def rms_norm_problem(grad_out, x, weight=None, eps=1e-5, grad_sum=None) -> Backward:
    return Backward(RMS, grad_out, x, weight, eps, added=None if grad_sum is None else grad_sum.contiguous())


def layer_norm_problem(grad_out, x, weight=None, eps=1e-5) -> Backward:
    return Backward(LAYER, grad_out, x, weight, eps)


def _ladder(problem_of: Callable[..., Backward], count: int) -> dict[str, Variant]:
    def variant(name: str) -> Variant:
        def fn(*tensors, **options):
            return LAUNCHERS[name](problem_of(*tensors, **options))[:count]

        fn.__name__, fn.__doc__ = name, IDEAS[name]
        fn.__wrapped__ = problem_of

        def accepts(*tensors, **options) -> str | None:
            return REFUSALS[name](problem_of(*tensors, **options))

        return Variant(name, fn, IDEAS[name], FOLDER / FILES[name], accepts)

    return {name: variant(name) for name in LAUNCHERS}


def _dense_rows(problem: Backward) -> str | None:
    apart = any(tensor.stride(1) != 1 and tensor.shape[1] > 1 for tensor in (problem.x, problem.gradient))
    return "takes rows whose elements are neighbours in memory" if apart else None


def _on_hopper(problem: Backward) -> str | None:
    inputs = 2 if problem.added is None else 3
    return _dense_rows(problem) or launch.ring_refusal(problem.x, problem.width, inputs, launch.SUMS) or hopper_refusal(problem.x)


REFUSALS = {"v1_naive": lambda problem: None, "v2_registers": _dense_rows, "v3_ring": _on_hopper}
RMS_NORM_BACKWARD = _ladder(rms_norm_problem, 2)
LAYER_NORM_BACKWARD = _ladder(layer_norm_problem, 3)
