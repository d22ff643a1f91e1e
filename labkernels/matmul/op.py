"""The operation `matmul`: activation(a @ b + bias) + residual. What it is, on what it is judged, and what it costs.

a is (m, k), b (k, n), bias (n,), residual and the result are (m, n). Rows of a and of the residual are dense; b is dense by rows, or by columns
as `weight.t()` of a linear layer is. Whatever the dtype, a product is summed, activated and added to in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.matmul.mistakes import hints
from labkernels.matmul.peers import PEERS, native
from labkernels.matmul.reference import ACTIVATIONS, reference
from labkernels.operation import Op, Tolerance, Variant, dtype_name

LINEARS = (  # (n, k) of Llama's linear layers: q with k and v, output, gate with up, down
    *((3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192)),  # 1B
    *((12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008)),  # 7B
    *((10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672)),  # 70B
)


def problem(a, b, bias=None, activation=None, residual=None) -> str | None:
    """What is wrong with these inputs, or None. Shapes first, so that a wrong one is named before anything is launched."""
    tensors = {name: t for name, t in (("a", a), ("b", b), ("bias", bias), ("residual", residual)) if t is not None}
    axes = {"a": "(m, k)", "b": "(k, n)", "bias": "(n,)", "residual": "(m, n)"}
    for name, tensor in tensors.items():
        count = axes[name].count(" ") + 1
        if tensor.dim() != count:
            return f"{name} has shape {tuple(tensor.shape)}; it must have {'two axes' if count == 2 else 'one axis'}, {axes[name]}"
        if tensor.dtype not in OP.dtypes:
            return f"{name} is {dtype_name(tensor.dtype)}; it must be {', '.join(map(dtype_name, OP.dtypes[:-1]))} or {dtype_name(OP.dtypes[-1])}"
        if tensor.dtype != a.dtype:
            return f"{name} is {dtype_name(tensor.dtype)}, a is {dtype_name(a.dtype)}; both must be equal"
        if tensor.device != a.device:
            return f"{name} is on {tensor.device}, a is on {a.device}; both must be on one device"
    if activation not in ACTIVATIONS:
        return f"activation is {activation!r}; it must be one of {', '.join(map(repr, ACTIVATIONS))}"
    if b.shape[0] != a.shape[1]:
        return f"b has {b.shape[0]} rows, a has {a.shape[1]} columns; both must be equal"
    if bias is not None and bias.shape[0] != b.shape[1]:
        return f"bias has {bias.shape[0]} elements, b has {b.shape[1]} columns; both must be equal"
    if residual is not None and residual.shape != (a.shape[0], b.shape[1]):
        return f"residual has shape {tuple(residual.shape)}, the result has ({a.shape[0]}, {b.shape[1]}); both must be equal"
    for name, tensor in tensors.items():
        dense_columns = name == "b" and _dense(tensor.t())
        if not _dense(tensor) and not dense_columns:
            what = {"b": "rows or the columns of b", "bias": "elements of bias"}.get(name, f"rows of {name}")
            return f"{name} has strides {tensor.stride()}; the {what} must be dense in memory (stride 1)"
    return None


def _dense(tensor: torch.Tensor) -> bool:
    """Are the elements of a row neighbours in memory?"""
    return tensor.stride(-1) == 1 or tensor.shape[-1] <= 1


def shape(m: int, n: int | None = None, k: int | None = None, layout: str = "rows", epilogue: str = "none", **other) -> dict:
    """A complete shape from what differs from square, dense matrices and nothing but the product."""
    return {"m": m, "n": m if n is None else n, "k": m if k is None else k, "layout": layout, "epilogue": epilogue, **other}


def make_inputs(generator, device, dtype, *, m, n, k, layout="rows", epilogue="none", magnitude=1.0) -> dict:
    """Normally distributed matrices; a times `magnitude`.

    Layouts: `rows`, all dense; `weight`, b is the transpose of a dense (n, k); `slices`, a, b and residual are cut out of wider matrices, their
    rows still on 16 bytes where the sizes allow it; `odd` and `odd_weight`, every row begins elsewhere. Epilogues: `none`, or what comes after
    the product, such as `bias+gelu` or `silu+residual`.
    """
    before, behind = {"slices": (8, 8), "odd": (1, 2), "odd_weight": (1, 2)}.get(layout, (0, 0))

    def tensor(rows, columns, size=1.0):
        wide = size * torch.randn((rows, before + columns + behind), generator=generator, device=generator.device)
        return wide.to(device, dtype)[:, before : before + columns]

    steps = [] if epilogue == "none" else epilogue.split("+")
    activations = [step for step in steps if step not in ("bias", "residual")]
    return {
        "a": tensor(m, k, magnitude),
        "b": tensor(n, k).t() if layout in ("weight", "odd_weight") else tensor(k, n),
        "bias": tensor(1, n)[0] if "bias" in steps else None,
        "activation": activations[0] if activations else None,
        "residual": tensor(m, n) if "residual" in steps else None,
    }


def tolerance(dtype: torch.dtype, *, k, magnitude=1.0, **_) -> Tolerance:
    """A sum of k random products is about sqrt(k) in size, and so are the partial sums that are rounded, k times: the error grows with k."""
    epsilon = torch.finfo(torch.float32).eps
    return Tolerance(relative=epsilon * (8 + k**0.5), absolute=epsilon * magnitude * (8 + 8 * k**0.5 + k))


def complete_shape(dtype, *, m, n=None, k=None, layout="rows", epilogue="none") -> dict:
    """Square unless told otherwise."""
    return shape(m, n, k, layout, epilogue)


def bytes_moved(dtype, *, m, n, k, epilogue="none", **_) -> int:
    """a, b and what the epilogue adds read once, the result written once."""
    added = n * ("bias" in epilogue) + m * n * ("residual" in epilogue)
    return (m * k + k * n + m * n + added) * dtype.itemsize


def load_variants() -> Mapping[str, Variant]:
    from labkernels.matmul.variants import VARIANTS

    return VARIANTS


OP = Op(
    name="matmul",
    summary="activation(a @ b + bias) + residual, the last three if wanted",
    load_variants=load_variants,
    reference=reference,
    native=native,
    problem=problem,
    make_inputs=make_inputs,
    axes=("row", "col"),
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    small_shapes=(
        shape(1),
        shape(3, 5, 9, "odd"),
        shape(33, 40, 24, "weight", "bias+gelu+residual"),
        shape(20, 36, 72, "rows"),
    ),
    check_shapes=(
        shape(1),
        shape(3),
        shape(33),
        shape(32, 32, 32),
        shape(64, 128, 64),
        shape(128, 64, 16, "weight"),
        shape(1, 40, 100),
        shape(50, 1, 70, "weight"),
        shape(70, 65, 1),
        shape(5, 3, 300),
        shape(130, 9, 33),
        shape(4, 200, 31, "weight"),
        shape(129, 140, 48),
        shape(40, 56, 1000),
        shape(48, 72, 40, "slices"),
        shape(48, 72, 40, "odd"),
        shape(37, 51, 64, "odd_weight"),
        shape(66, 66, 66, magnitude=100.0),
        shape(40, 64, 32, epilogue="bias"),
        shape(40, 64, 32, epilogue="residual"),
        shape(40, 64, 32, "weight", "relu+residual"),
        shape(40, 64, 32, "weight", "bias+gelu"),
        shape(40, 64, 32, "weight", "gelu_tanh"),
        shape(40, 64, 32, "weight", "bias+silu+residual"),
        shape(35, 45, 20, "odd", "bias+gelu+residual"),
        shape(20, 30, 0, epilogue="bias+residual"),
    ),
    large_shapes=(
        shape(1024),
        shape(1000, 777, 1555, "odd"),
        shape(2048, 1024, 512, "weight", "bias+gelu"),
        shape(512, 4096, 8192, "weight"),
        shape(8, 4096, 4096, "weight", "residual"),
        shape(3000, 260, 136, "slices", "bias+silu+residual"),
    ),
    tolerance=tolerance,
    hints=hints,
    complete_shape=complete_shape,
    sweep={"dtype": ["float32"], "m": [512, 1024, 2048, 4096, 8192]},
    record_sweeps=(
        {"dtype": ["float32", "bfloat16", "float16"], "m": [512, 1024, 2048, 4096, 8192]},
        *({"dtype": ["bfloat16"], "n": [n], "k": [k], "layout": ["weight"], "m": [512, 2048, 8192]} for n, k in LINEARS),
        {"dtype": ["bfloat16"], "epilogue": ["bias+gelu", "silu+residual"], "layout": ["weight"], "m": [1024, 4096]},
    ),
    flops=lambda *, m, n, k, **_: 2 * m * n * k,
    bytes_moved=bytes_moved,
    peers=PEERS,
)
