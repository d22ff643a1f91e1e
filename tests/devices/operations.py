"""What the tests of devices, streams, graphs and threads run: every variant of every operation, on inputs that may be moved, copied and overwritten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch

import labkernels as lk
from labkernels.operation import Op, Variant
from labkernels.quant.formats import QuantizedWeight
from tests.large.far import assert_same, in_cuda_cpp

NAMES = list(lk.ops)
TELLING = {  # shapes at which blocks share a result and count each other, where an operation's own small ones may not
    "quant_matmul": {"m": 4, "n": 512, "k": 4096, "scheme": "int4"},
    "decode_attention": {"batch": 2, "length": 3000, "heads": 8, "kv_heads": 2, "head_dim": 128},
    "ffn": {"tokens": 2, "embed": 512, "ffn": 1024, "activation": "swiglu"},
    "matmul": {"m": 300, "n": 256, "k": 1024},
    "gemv": {"m": 2, "n": 256, "k": 4096},
    "sample_tokens": {"rows": 3, "vocab": 32000, "top_k": 40, "top_p": 0.9},
    "cross_entropy": {"rows": 5, "vocab": 32000},
}


class Case(NamedTuple):
    op: Op
    variant: Variant
    shape: dict
    dtype: torch.dtype

    def inputs(self, device: str = "cuda", seed: int = 0) -> dict[str, Any]:
        return self.op.make_inputs(torch.Generator().manual_seed(seed), torch.device(device), self.dtype, **self.shape)

    def run(self, inputs: dict[str, Any]) -> Any:
        return self.variant.fn(**inputs)

    def results(self, result: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
        return [each for each in self.op.each(self.op.decode(result, **inputs)) if isinstance(each, torch.Tensor)]

    def wanted(self, inputs: dict[str, Any]) -> list[torch.Tensor]:
        """What comes of a copy of these inputs, with nothing else going on."""
        given = mapped(inputs, torch.clone)
        return [result.clone() for result in self.results(self.run(given), given)]

    def assert_equal(self, found: list[torch.Tensor], wanted: list[torch.Tensor], what: str = "") -> None:
        assert len(found) == len(wanted)
        for got, want in zip(found, wanted):
            what = f"{self.op.name} {self.variant.name} {what}"
            if self.op.deterministic:
                assert got.dtype == want.dtype and torch.equal(got.nan_to_num(), want.nan_to_num()), what
            else:
                assert_same(got, want, what)


def cases(name: str, device: str = "cuda") -> Iterator[Case]:
    """Each variant of an operation in CUDA C++, on the most telling inputs that it takes."""
    op = lk.ops[name]
    dtypes = sorted(op.dtypes, key=lambda dtype: dtype != torch.bfloat16)
    shapes = [*([TELLING[name]] if name in TELLING else []), *reversed(op.check_shapes)]
    for variant in in_cuda_cpp(op):
        found = (Case(op, variant, shape, dtype) for dtype in dtypes for shape in shapes)
        yield from (case for case in [next((case for case in found if variant.accepts(**case.inputs(device)) is None), None)] if case)


def mapped(value: Any, fn: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`value` with fn(tensor) for each tensor in it."""
    if isinstance(value, torch.Tensor):
        return fn(value)
    if isinstance(value, dict):
        return {name: mapped(each, fn) for name, each in value.items()}
    if isinstance(value, QuantizedWeight):
        return replace(value, packed=fn(value.packed), scales=fn(value.scales), codebook=mapped(value.codebook, fn))
    if isinstance(value, tuple):
        each = [mapped(one, fn) for one in value]
        return type(value)(*each) if hasattr(value, "_fields") else tuple(each)
    return value


def tensors(value: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    mapped(value, lambda tensor: found.append(tensor) or tensor)
    return found
