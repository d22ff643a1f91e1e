"""Schemas of the operators, what they do launched from Python, and their fake kernels (shapes and dtypes without data).

    labkernels::matmul(a, b, bias, activation, residual) -> Tensor                       as labkernels.matmul.matmul
    labkernels::attention(q, k, v, causal, scale, window_left, window_right, mask) -> (out, lse)    as labkernels.attention.attention
    labkernels::attention_backward(grad_out, q, k, v, out, lse, ...the same options) -> (grad_q, grad_k, grad_v)

Any strides will do: what the kernels cannot read in place is copied first. Each operator NAME but the last has two twins for the C++ extension to call:
NAME_rawkernel always launches from Python, and serves the inputs for which the extension has no kernel; NAME_autograd has the gradients
(gradients.py), so that a call that wants none does not pass through Python on its way.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from labkernels.attention.op import OP as ATTENTION
from labkernels.attention_backward.op import OP as BACKWARD
from labkernels.errors import ArgumentError
from labkernels.matmul import hopper as hopper_matmul
from labkernels.matmul.op import OP as MATMUL
from labkernels.operation import Op
from labkernels.scaled_matmul.op import OP as SCALED_MATMUL
from labkernels.torch_extension.transforms import no_second_gradient, vmap_rule

_OPTIONS = "bool causal=False, float? scale=None, int? window_left=None, int? window_right=None, Tensor? mask=None"
SCHEMAS = {
    "matmul": "(Tensor a, Tensor b, Tensor? bias=None, str? activation=None, Tensor? residual=None) -> Tensor",
    "attention": f"(Tensor q, Tensor k, Tensor v, {_OPTIONS}) -> (Tensor out, Tensor lse)",
    "attention_backward": "(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    f"{_OPTIONS}) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)",
}

LIBRARY = torch.library.Library("labkernels", "DEF")
_cuda = torch.library.Library("labkernels", "IMPL", "CUDA")  # in the C++ extension's place, until it is loaded
_backend = "rawkernel"


def backend() -> str:
    """What launches the operators' kernels on CUDA tensors: "rawkernel" (Python, code from NVRTC) or "cpp" (C++, code from nvcc)."""
    return _backend


def give_way() -> None:
    """Leave CUDA tensors to the C++ extension, which is about to register its own kernels."""
    global _backend
    _cuda._destroy()
    _backend = "cpp"


def define(name: str, schema: str, run: Callable, fake: Callable) -> None:
    """Make torch.ops.labkernels.NAME of `schema`, what follows its name: `run` serves tensors on the CPU and on the GPU alike, `fake` tells
    the compiler the shapes of what comes out. NAME_backward has no gradient, and says so."""
    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"labkernels::{name}", fake, lib=LIBRARY)
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, run, key)
    _transforms(name)


def _transforms(name: str) -> None:
    torch.library.register_vmap(f"labkernels::{name}", vmap_rule(name), lib=LIBRARY)
    if name.endswith(("_backward", "_backward_autograd")):
        torch.library.register_autograd(f"labkernels::{name}", no_second_gradient(name), lib=LIBRARY)


def matmul(a, b, bias=None, activation=None, residual=None) -> torch.Tensor:
    b, given = _readable(b), {"bias": _dense(bias), "activation": activation, "residual": _dense(residual)}
    if a.dim() == 2 and a.stride(1) != 1:
        _check(MATMUL, a=_like(a), b=b, **given)
        if hopper_matmul.accepts(a, b) is None:  # Hopper's reads columns, too
            return hopper_matmul.v7_hopper(a, b, **given)
    return MATMUL.run(a=_dense(a), b=b, **given)


def matmul_fake(a, b, bias=None, activation=None, residual=None) -> torch.Tensor:
    _check(MATMUL, a=_like(a), b=_like(b), bias=_like(bias), activation=activation, residual=_like(residual))
    return a.new_empty(a.shape[0], b.shape[1])


def attention(q, k, v, causal=False, scale=None, window_left=None, window_right=None, mask=None) -> tuple[torch.Tensor, torch.Tensor]:
    q, k, v = map(_dense, (q, k, v))
    return ATTENTION.run(q=q, k=k, v=v, causal=causal, scale=scale, **options(window_left, window_right, mask), return_lse=True)


def attention_fake(q, k, v, causal=False, scale=None, window_left=None, window_right=None, mask=None):
    _check(ATTENTION, q=q, k=k, v=v, causal=causal, scale=scale, **options(window_left, window_right, mask))
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


def attention_backward(grad_out, q, k, v, out, lse, causal=False, scale=None, window_left=None, window_right=None, mask=None):
    """As labkernels.attention_backward.attention_backward; deterministic where PyTorch is told to be."""
    grad_out, q, k, v, out = map(_dense, (grad_out, q, k, v, out))
    given = options(window_left, window_right, mask) | ({"deterministic": True} if torch.are_deterministic_algorithms_enabled() else {})
    return tuple(BACKWARD.run(grad_out=grad_out, q=q, k=k, v=v, out=out, lse=lse.contiguous(), causal=causal, scale=scale, **given))


def attention_backward_fake(grad_out, q, k, v, out, lse, causal=False, scale=None, window_left=None, window_right=None, mask=None):
    given = options(window_left, window_right, mask)
    _check(BACKWARD, grad_out=grad_out, q=q, k=k, v=v, out=out, lse=lse, causal=causal, scale=scale, **given)
    return tuple(tensor.new_empty(tensor.shape) for tensor in (q, k, v))


def scaled_matmul(a, b, scale_a, scale_b, bias=None, out_dtype=torch.bfloat16) -> torch.Tensor:
    b = b.t().contiguous().t() if b.dim() == 2 and b.stride(0) != 1 else b
    return SCALED_MATMUL.run(a=_dense(a), b=b, scale_a=scale_a, scale_b=scale_b, bias=_dense(bias), out_dtype=out_dtype)


def scaled_matmul_fake(a, b, scale_a, scale_b, bias=None, out_dtype=torch.bfloat16) -> torch.Tensor:
    like_b = _like(b.t()).t() if b.dim() == 2 else b
    _check(SCALED_MATMUL, a=_like(a), b=like_b, scale_a=scale_a, scale_b=scale_b, bias=_like(bias), out_dtype=out_dtype)
    return a.new_empty((a.shape[0], b.shape[1]), dtype=out_dtype)


def options(window_left, window_right, mask) -> dict:
    """The options of `labkernels.attention.attention` that are given; not all of its variants know them."""
    window = None if window_left is None and window_right is None else (window_left, window_right)
    return {name: value for name, value in (("window", window), ("mask", mask)) if value is not None}


def _check(op: Op, **inputs) -> None:
    problem = op.problem(**inputs)
    if problem is not None:
        raise ArgumentError(f"{op.name}: {problem}")


def _dense(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The same values, the last axis dense in memory."""
    if tensor is None or tensor.dim() == 0 or tensor.stride(-1) == 1 or tensor.shape[-1] <= 1:
        return tensor
    return tensor.contiguous()


def _like(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """A tensor of this shape with dense rows, for a check of all but the strides: one row stands for all."""
    if tensor is None or tensor.dim() == 0:
        return tensor
    return tensor.new_empty((*[1] * (tensor.dim() - 1), tensor.shape[-1])).expand(tensor.shape)


def _readable(b: torch.Tensor) -> torch.Tensor:
    """b as it is if its rows or its columns are dense, else a copy."""
    return b if b.dim() == 2 and (b.stride(0) == 1 or b.shape[0] <= 1) else _dense(b)


for _name, _schema in SCHEMAS.items():
    for _each in (_name, f"{_name}_rawkernel", f"{_name}_autograd"):
        LIBRARY.define(_each + _schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(f"labkernels::{_each}", globals()[f"{_name}_fake"], lib=LIBRARY)
        LIBRARY.impl(_each, globals()[_name], "CPU")
    _transforms(_name)
    _transforms(f"{_name}_autograd")
    LIBRARY.impl(f"{_name}_rawkernel", globals()[_name], "CUDA")
    _cuda.impl(_name, globals()[_name])
    _cuda.impl(f"{_name}_autograd", globals()[_name])

define(
    "scaled_matmul", "(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, Tensor? bias=None, ScalarType out_dtype=bfloat16) -> Tensor",
    scaled_matmul, scaled_matmul_fake,
)  # fmt: skip
