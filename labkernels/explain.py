"""Which variant an operation picks for these inputs, and why no other: `lk.explain("attention", q, k, v, causal=True)`."""

from __future__ import annotations

import html
import inspect
from dataclasses import dataclass

import torch

from labkernels.errors import ArgumentError
from labkernels.operation import Op, dtype_name, ops


@dataclass(frozen=True)
class Verdict:
    """What was decided about one variant. `refusal` is its reason for not taking the inputs, None if it takes them; `preferred` says why, of those
    that take them, another one is taken."""

    variant: str
    refusal: str | None
    chosen: bool
    idea: str
    preferred: str = ""

    def __str__(self) -> str:
        return "chosen" if self.chosen else f"refused: {self.refusal}" if self.refusal else f"would do; {self.preferred}"


@dataclass(frozen=True)
class Explanation:
    """An operation's variants from the highest of its ladder down, each with its verdict. Shows as a table in a notebook."""

    op: str
    inputs: str
    runs: str  # on what, or why nothing has to
    verdicts: tuple[Verdict, ...]

    @property
    def chosen(self) -> str | None:
        """The variant's name; None where no variant takes the inputs, or none is needed."""
        return next((verdict.variant for verdict in self.verdicts if verdict.chosen), None)

    def __str__(self) -> str:
        width = max(len(verdict.variant) for verdict in self.verdicts)
        lines = [f"  {verdict.variant:{width}}  {verdict}" for verdict in self.verdicts]
        return "\n".join([f"{self.op}({self.inputs}): {self.runs}", *lines])

    def _repr_html_(self) -> str:
        left = "style='text-align:left'"
        rows = "".join(
            f"<tr><th {left}>{html.escape(v.variant)}</th><td {left}>{'<b>chosen</b>' if v.chosen else html.escape(str(v))}</td>"
            f"<td {left}>{html.escape(v.idea)}</td></tr>"
            for v in self.verdicts
        )
        caption = f"<b>{html.escape(self.op)}</b>({html.escape(self.inputs)}): {html.escape(self.runs)}"
        return f"{caption}<table><tr><th {left}>variant</th><th {left}>verdict</th><th {left}>idea</th></tr>{rows}</table>"


def explain(op_name: str, *args, **kwargs) -> Explanation:
    """How the operation's function would do it: each variant, chosen or refused because of what. Computes nothing.

    Raises KeyError for an operation that does not exist, and ArgumentError for inputs that the function itself would refuse.
    """
    op = ops[op_name]
    inputs = _bound(op, args, kwargs)
    problem = op.problem(**inputs)
    if problem is not None:
        raise ArgumentError(f"{op_name}: {problem}")
    nothing_to_do = op.trivial(**inputs) is not None
    refusals = {variant.name: variant.accepts(**inputs) for variant in reversed(op.variants.values())}
    highest = next((name for name, refusal in refusals.items() if refusal is None), None)
    chosen = None if nothing_to_do or highest is None else op.pick(**inputs).name
    if nothing_to_do:
        preferred = "there is nothing to do"
    else:
        preferred = "the highest of the ladder that does is chosen" if chosen == highest else f"{chosen} was measured to be faster here"
    verdicts = [Verdict(name, refusal, name == chosen, op.variants[name].idea, preferred) for name, refusal in refusals.items()]
    runs = "nothing to compute, the result is known without a kernel" if nothing_to_do else _runs_on(op_name, inputs)
    return Explanation(op_name, ", ".join(_shown(name, value) for name, value in inputs.items()), runs, tuple(verdicts))


def _bound(op: Op, args, kwargs) -> dict:
    """The inputs by name, without the options left at their defaults: not all variants know all options."""
    signature = inspect.signature(ops.function(op.name))
    try:
        bound = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise ArgumentError(f"{op.name}: {error}; it takes {signature}") from error
    return {name: value for name, value in bound.items() if value is not signature.parameters[name].default}


def _runs_on(op_name: str, inputs: dict) -> str:
    from labkernels.torch_extension import backend, goes_through_torch

    tensors = [value for value in inputs.values() if isinstance(value, torch.Tensor)]
    operator = op_name in ("attention", "matmul") and goes_through_torch(*tensors)
    by = f"as torch.ops.labkernels.{op_name}, " if operator else ""
    if tensors[0].device.type == "cpu":
        return by + "in the emulator, on the CPU"
    launched = "from C++ where the extension has the kernel, else from Python" if operator and backend() == "cpp" else "launched from Python"
    return f"{by}on {torch.cuda.get_device_name(tensors[0].device)}, {launched}"


def _shown(name: str, value) -> str:
    return f"{name}: {dtype_name(value.dtype)} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"{name}={value!r}"
