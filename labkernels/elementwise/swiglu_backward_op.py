"""The operation `swiglu_backward`: the gradients of gate and up from that of silu(gate) * up.

With s = 1 / (1 + exp(-gate)):    d gate = grad * up * s * (1 + gate * (1 - s))        d up = grad * gate * s
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from labkernels.elementwise import swiglu_op as forward
from labkernels.elementwise.peers import compiled, optional
from labkernels.elementwise.rows import dtype_and_device_problem
from labkernels.operation import Op, Peer, Tolerance, Variant


def reference(grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(grad_gate, grad_up), each of grad's shape (rows, cols); of packed inputs they are the halves of one tensor (rows, 2 cols)."""
    gate, up = forward.halves(gate, up)
    sigmoid = gate.sigmoid()
    return grad * up * sigmoid * (1 + gate * (1 - sigmoid)), grad * gate * sigmoid


def native(grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    gate, up = forward.halves(gate, up)
    return torch.ops.aten.silu_backward(grad * up, gate), grad * F.silu(gate)


def problem(grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor | None = None) -> str | None:
    if wrong := forward.problem(gate, up):
        return wrong
    wanted = forward.halves(gate, up)[0].shape
    if grad.shape != wanted:
        return f"grad has shape {tuple(grad.shape)}; it must be {tuple(wanted)}"
    return dtype_and_device_problem({"gate": gate, "grad": grad}, forward.DTYPES)


def make_inputs(generator, device, dtype, *, rows: int, cols: int, layout: str = "two", magnitude: float = 2.0) -> dict:
    """As of `swiglu`, and a normally distributed gradient."""
    inputs = forward.make_inputs(generator, device, dtype, rows=rows, cols=cols, layout=layout, magnitude=magnitude)
    return {"grad": torch.randn((rows, cols), generator=generator, device=generator.device).to(device, dtype), **inputs}


def tolerance(dtype: torch.dtype, *, magnitude: float = 2.0, **_) -> Tolerance:
    """1 + gate * (1 - s) is small where it changes its sign, near gate = -1.28, and there errs by an absolute amount."""
    return Tolerance(relative=64 * torch.finfo(torch.float32).eps, absolute=2e-5 * max(1.0, magnitude) ** 2)


def hints(failure) -> str | None:
    """Name the classic mistake whose result this is."""
    grad = failure.inputs["grad"].double()
    gate, up = (value.double() for value in forward.halves(failure.inputs["gate"], failure.inputs["up"]))
    sigmoid = gate.sigmoid()
    if failure.result == "grad_up":
        return failure.matching([("grad * sigmoid(gate): the gradient of up is grad * silu(gate)", grad * sigmoid)])
    return failure.matching(
        [
            ("grad * up * sigmoid(gate): silu's slope has a second term, gate * s * (1 - s)", grad * up * sigmoid),
            ("grad * silu's slope: the factor up is missing", grad * sigmoid * (1 + gate * (1 - sigmoid))),
            ("grad * up * s * (1 - s): that is sigmoid's slope, not silu's", grad * up * sigmoid * (1 - sigmoid)),
        ]
    )


def _liger(grad, gate, up=None):
    from liger_kernel.ops.swiglu import swiglu_backward

    gate, up = forward.halves(gate, up)
    # Liger writes its results over gate and up; the copies that keep our inputs whole are part of its time here.
    return swiglu_backward(gate.clone(memory_format=torch.contiguous_format), up.clone(memory_format=torch.contiguous_format), grad)


def _trivial(grad, gate, up=None):
    return (torch.empty_like(grad), torch.empty_like(grad)) if grad.numel() == 0 else None


def load_variants() -> Mapping[str, Variant]:
    from labkernels.elementwise.swiglu_backward_variants import VARIANTS

    return VARIANTS


OP = Op(
    name="swiglu_backward",
    summary="the gradients of gate and up from that of silu(gate) * up",
    load_variants=load_variants,
    reference=reference,
    native=native,
    problem=problem,
    trivial=_trivial,
    make_inputs=make_inputs,
    axes=("row", "col"),
    results=("grad_gate", "grad_up"),
    dtypes=forward.DTYPES,
    small_shapes=({"rows": 1, "cols": 1}, {"rows": 3, "cols": 33}, {"rows": 3, "cols": 24, "layout": "packed"}),
    check_shapes=forward.CHECK_SHAPES[:-1],
    large_shapes=forward.LARGE_SHAPES,
    tolerance=tolerance,
    hints=hints,
    complete_shape=lambda dtype, *, rows=16_384, cols=11_008, layout="two": {"rows": rows, "cols": cols, "layout": layout},
    sweep={"dtype": ["bfloat16"], "rows": [256, 16_384]},
    record_sweeps=forward.RECORD_SWEEPS,
    flops=lambda *, rows, cols, **_: 12 * rows * cols,
    bytes_moved=lambda dtype, *, rows, cols, **_: 5 * rows * cols * dtype.itemsize,
    peers={
        "torch": Peer("torch", native),
        "torch.compile": compiled(native),
        "liger (with copies)": optional("liger (with copies)", "liger_kernel", _liger),
    },
)
