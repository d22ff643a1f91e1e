"""The operation `quant_matmul`: x @ w^T with a quantised weight. What it is, on what it is judged, and what it costs.

x is (m, k), the weight a `QuantizedWeight` of shape (n, k). What is judged is the product with the weight as it was stored; how far that
is from the weight before it was quantised is another question (accuracy.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from labkernels.operation import Op, Tolerance, Variant, dtype_name
from labkernels.quant.formats import FOUR_BIT, NF4, QuantizedWeight, padded_columns
from labkernels.quant.mistakes import hints
from labkernels.quant.peers import PEERS, native
from labkernels.quant.quantizers import quantize

LINEARS = ((4096, 4096), (11008, 4096), (4096, 11008), (28672, 8192))  # (n, k): of Llama 7B, and gate with up of Llama 70B on two GPUs


def reference(x, weight) -> torch.Tensor:
    """x @ dequantised weight^T, in the precision of x."""
    return x @ weight.dequantize(x.dtype).t()


def problem(x, weight) -> str | None:
    """What is wrong with these inputs, or None."""
    if not isinstance(weight, QuantizedWeight):
        return f"weight is a {type(weight).__name__}; it must be a QuantizedWeight, which labkernels.quant.quantize makes"
    if x.dim() != 2:
        return f"x has shape {tuple(x.shape)}; it must have two axes, (m, k)"
    if x.dtype not in OP.dtypes:
        return f"x is {dtype_name(x.dtype)}; it must be {', '.join(map(dtype_name, OP.dtypes[:-1]))} or {dtype_name(OP.dtypes[-1])}"
    if x.shape[1] != weight.shape[1]:
        return f"x has {x.shape[1]} columns, weight has {weight.shape[1]}; both must be equal"
    if x.device != weight.device:
        return f"weight is on {weight.device}, x is on {x.device}; both must be on one device"
    return None


def trivial(x, weight) -> torch.Tensor | None:
    return x.new_zeros((x.shape[0], weight.shape[0])) if not x.numel() or not weight.shape[0] else None


def shape(m: int, n: int = 4096, k: int = 4096, scheme: str = "int4", group_size: int | None = 128, **other) -> dict:
    """A complete shape; int8 and fp8 have no groups."""
    return {"m": m, "n": n, "k": k, "scheme": scheme, "group_size": group_size if scheme in FOUR_BIT else 0, **other}


def make_inputs(generator, device, dtype, *, m, n, k, scheme="int4", group_size=128, gap=0) -> dict:
    """Normally distributed x and weight, the weight with a mean of its own in each row: zeros in the middle would hide a lost zero.

    Rows of x begin `gap` elements after the end of the one before.
    """
    x = torch.randn((m, k + gap), generator=generator, device=generator.device).to(device, dtype)[:, :k]
    mean = torch.randn((n, 1), generator=generator, device=generator.device).to(device)
    weight = torch.randn((n, k), generator=generator, device=generator.device).to(device) + 0.5 * mean
    codebook = torch.tensor(NF4, device=device).square() * torch.tensor(NF4, device=device).sign() if scheme == "codebook" else None
    return {"x": x, "weight": replace(quantize(weight, scheme, group_size if scheme in FOUR_BIT else None, codebook=codebook), any_variant=True)}


def tolerance(dtype: torch.dtype, *, k, **_) -> Tolerance:
    """That of float32 sums, as for `matmul`. In low precision check allows twice the error of PyTorch's product with the weight in x.dtype."""
    epsilon = torch.finfo(torch.float32).eps
    return Tolerance(relative=epsilon * (8 + k**0.5), absolute=epsilon * (8 + 8 * k**0.5 + k))


def weight_bytes(n: int, k: int, scheme: str, group_size: int | None) -> int:
    """What a QuantizedWeight of this shape takes: numbers, scales, codebook."""
    columns = padded_columns(k, scheme, group_size)
    if scheme not in FOUR_BIT:
        return n * columns + 4 * n
    return n * columns // 2 + n * columns // group_size * (4 if scheme == "int4" else 2) + (0 if scheme == "int4" else 64)


def bytes_moved(dtype, *, m, n, k, scheme="int4", group_size=128, **_) -> int:
    """Weight and x read once, the result written once."""
    return weight_bytes(n, k, scheme, group_size) + (m * k + m * n) * dtype.itemsize


def load_variants() -> Mapping[str, Variant]:
    from labkernels.quant.quant_matmul_variants import VARIANTS

    return VARIANTS


OP = Op(
    name="quant_matmul",
    summary="x @ w^T with a weight of 4 or 8 bits a number",
    load_variants=load_variants,
    reference=reference,
    native=native,
    problem=problem,
    trivial=trivial,
    make_inputs=make_inputs,
    axes=("row", "col"),
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    small_shapes=(shape(1, 37, 300), shape(3, 17, 129, "int8"), shape(2, 20, 200, "nf4", 64)),
    check_shapes=(
        shape(1, 1, 1),
        shape(1, 50, 1040),
        shape(3, 33, 300, group_size=32),
        shape(8, 17, 129, group_size=64),
        shape(2, 35, 515, "codebook", 128),
        shape(2, 33, 300, "int8"),
        shape(1, 50, 77, "fp8"),
        shape(33, 40, 160, gap=3),
    ),
    large_shapes=(
        shape(1),
        shape(4, 11008, 4096),
        shape(8, 1000, 11000, group_size=32),
        shape(1, 4096, 11008, "nf4", 64),
        shape(7, 4096, 4096, "int8"),
        shape(1, 1024, 8192, "fp8"),
        shape(64, 1024, 4096),
    ),
    tolerance=tolerance,
    hints=hints,
    complete_shape=lambda dtype, *, m, n=4096, k=4096, scheme="int4", group_size=128: shape(m, n, k, scheme, group_size),
    sweep={"dtype": ["bfloat16"], "n": [11008], "m": [1, 4, 16, 64]},
    record_sweeps=(
        *({"dtype": ["bfloat16"], "n": [n], "k": [k], "scheme": ["int4"], "m": [1, 4, 16, 64, 256]} for n, k in LINEARS),
        *({"dtype": ["bfloat16"], "n": [n], "k": [k], "scheme": ["nf4", "int8", "fp8"], "m": [1]} for n, k in LINEARS),
        {"dtype": ["bfloat16"], "n": [11008], "k": [4096], "scheme": ["int4"], "m": [2, 8, 32, 128, 512, 1024, 4096]},
        {"dtype": ["bfloat16"], "n": [4096], "k": [11008], "scheme": ["int4"], "m": [512, 4096]},
        {"dtype": ["bfloat16"], "n": [11008], "k": [4096], "scheme": ["nf4", "int8", "fp8"], "m": [4, 16, 64, 256]},
    ),
    flops=lambda *, m, n, k, **_: 2 * m * n * k,
    bytes_moved=bytes_moved,
    memory_ceiling="read",
    peers=PEERS,
)
