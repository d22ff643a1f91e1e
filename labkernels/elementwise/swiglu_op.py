"""The operation `swiglu`: silu(gate) * up, the activation between the two matmuls of a SwiGLU feed-forward layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from labkernels.elementwise.peers import compiled, optional
from labkernels.elementwise.rows import dtype_and_device_problem
from labkernels.operation import Op, Peer, Tolerance, Variant

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def halves(gate: torch.Tensor, up: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """gate and up; where one packed tensor holds both, its two halves."""
    if up is not None:
        return gate, up
    cols = gate.shape[-1] // 2
    return gate[..., :cols], gate[..., cols:]


def reference(gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
    """silu(gate) * up with silu(x) = x / (1 + exp(-x)); gate and up (rows, cols), or packed [gate | up] (rows, 2 cols)."""
    gate, up = halves(gate, up)
    return gate / (1 + (-gate).exp()) * up


def native(gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
    gate, up = halves(gate, up)
    return F.silu(gate) * up


def problem(gate: torch.Tensor, up: torch.Tensor | None = None) -> str | None:
    if gate.dim() < 1:
        return "gate has no axes; it must have at least one, (..., cols)"
    if up is None and gate.shape[-1] % 2:
        return f"gate has shape {tuple(gate.shape)}; without up it holds both, so its last axis must be even"
    if up is not None and up.shape != gate.shape:
        return f"up has shape {tuple(up.shape)}, gate has {tuple(gate.shape)}; both must be equal"
    return dtype_and_device_problem({"gate": gate, "up": up}, DTYPES)


def make_inputs(generator, device, dtype, *, rows: int, cols: int, layout: str = "two", magnitude: float = 2.0) -> dict:
    """Normally distributed gate and up; `packed`: in one tensor (rows, 2 cols); `transposed`: views of (cols, rows)."""

    def tensor(*shape):
        return (magnitude * torch.randn(shape, generator=generator, device=generator.device)).to(device, dtype)

    if layout == "packed":
        return {"gate": tensor(rows, 2 * cols), "up": None}
    if layout == "transposed":
        return {"gate": tensor(cols, rows).t(), "up": tensor(cols, rows).t()}
    return {"gate": tensor(rows, cols), "up": tensor(rows, cols)}


def tolerance(dtype: torch.dtype, **_) -> Tolerance:
    """A fast exponential of x errs by some |x| units in the last place, and x is a few times `magnitude`."""
    return Tolerance(relative=64 * torch.finfo(torch.float32).eps, absolute=1e-12)


def hints(failure) -> str | None:
    """Name the classic mistake whose result this is."""
    gate, up = (value.double() for value in halves(failure.inputs["gate"], failure.inputs["up"]))
    sigmoid = gate.sigmoid()
    mistakes = [
        ("silu(up) * gate: the two have changed places", F.silu(up) * gate),
        ("sigmoid(gate) * up (GLU): silu is x * sigmoid(x)", sigmoid * up),
        ("silu(gate): up is missing", F.silu(gate)),
        ("gelu(gate) * up (GEGLU)", F.gelu(gate) * up),
    ]
    if failure.inputs["up"] is None:
        packed = failure.inputs["gate"].double()
        mistakes.append(("what comes out when gate and up alternate; here all of gate comes first", F.silu(packed[:, ::2]) * packed[:, 1::2]))
    return failure.matching(mistakes)


def _liger(gate, up=None):
    from liger_kernel.ops.swiglu import swiglu_forward

    gate, up = halves(gate, up)
    return swiglu_forward(gate.contiguous(), up.contiguous())[2]


def load_variants() -> Mapping[str, Variant]:
    from labkernels.elementwise.swiglu_variants import VARIANTS

    return VARIANTS


SIZES = ((1, 1), (3, 33), (5, 64), (2, 1003))
CHECK_SHAPES = (
    *({"rows": rows, "cols": cols} for rows, cols in SIZES),
    {"rows": 4, "cols": 72, "layout": "packed"},
    {"rows": 3, "cols": 13, "layout": "packed"},
    {"rows": 7, "cols": 9, "layout": "transposed"},
    {"rows": 3, "cols": 40, "magnitude": 40.0},
)
LARGE_SHAPES = ({"rows": 1000, "cols": 11008}, {"rows": 777, "cols": 1001}, {"rows": 2049, "cols": 4096, "layout": "packed"})
RECORD_SWEEPS = (
    {"dtype": ["bfloat16"], "layout": ["two", "packed"], "rows": [256, 16_384]},
    {"dtype": ["float32"], "rows": [8192]},
)

OP = Op(
    name="swiglu",
    summary="silu(gate) * up",
    load_variants=load_variants,
    reference=reference,
    native=native,
    problem=problem,
    trivial=lambda gate, up=None: halves(gate, up)[0].new_empty(halves(gate, up)[0].shape) if gate.numel() == 0 else None,
    make_inputs=make_inputs,
    axes=("row", "col"),
    dtypes=DTYPES,
    small_shapes=({"rows": 1, "cols": 1}, {"rows": 3, "cols": 33}, {"rows": 3, "cols": 24, "layout": "packed"}),
    check_shapes=CHECK_SHAPES,
    large_shapes=LARGE_SHAPES,
    tolerance=tolerance,
    hints=hints,
    complete_shape=lambda dtype, *, rows=16_384, cols=11_008, layout="two": {"rows": rows, "cols": cols, "layout": layout},
    sweep={"dtype": ["bfloat16"], "rows": [256, 16_384]},
    record_sweeps=RECORD_SWEEPS,
    flops=lambda *, rows, cols, **_: 5 * rows * cols,
    bytes_moved=lambda dtype, *, rows, cols, **_: 3 * rows * cols * dtype.itemsize,
    peers={"torch": Peer("torch", native), "torch.compile": compiled(native), "liger": optional("liger", "liger_kernel", _liger)},
)
