"""The operation `symmetric_matmul`: alpha * x @ x^T + beta * c for a symmetric c. What it is, on what it is judged, and what it costs.

x is (m, k) or (batch, m, k), c and the result (m, m) or (batch, m, m). The result is symmetric, so half of the products are enough: FLOPs
are counted as m (m + 1) k, those of one triangle. Muon's Newton-Schulz iteration (Jordan et al., 2024) is made of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.operation import Op, Peer, Tolerance, Variant, dtype_name


def problem(x, c=None, alpha=1.0, beta=1.0) -> str | None:
    """What is wrong with these inputs, or None."""
    if x.dim() not in (2, 3):
        return f"x has shape {tuple(x.shape)}; it must have two or three axes, (m, k) or (batch, m, k)"
    if x.dtype not in OP.dtypes:
        return f"x is {dtype_name(x.dtype)}; it must be float32, bfloat16 or float16"
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        return f"x has strides {x.stride()}; its rows must be dense in memory (stride 1)"
    for name, value in (("alpha", alpha), ("beta", beta)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f"{name} is {value!r}; it must be a number"
    if c is None:
        return None
    want = (*x.shape[:-1], x.shape[-2])
    if tuple(c.shape) != want:
        return f"c has shape {tuple(c.shape)}; the result has {want}"
    if c.dtype != x.dtype:
        return f"c is {dtype_name(c.dtype)}, x is {dtype_name(x.dtype)}; both must be equal"
    if c.device != x.device:
        return f"c is on {c.device}, x is on {x.device}; both must be on one device"
    if not c.is_contiguous():
        return f"c has strides {c.stride()}; it must be contiguous"
    return None


def reference(x, c=None, alpha=1.0, beta=1.0) -> torch.Tensor:
    product = alpha * (x @ x.mT)
    return product if c is None else product + beta * c


def native(x, c=None, alpha=1.0, beta=1.0) -> torch.Tensor:
    """PyTorch's full product: baddbmm, which rounds once."""
    batch = x if x.dim() == 3 else x[None]
    if c is None:
        c, beta = batch.new_zeros(1), 0.0
    return torch.baddbmm(c if c.dim() == 3 else c[None], batch, batch.mT, alpha=alpha, beta=beta).view(*x.shape[:-1], x.shape[-2])


def shape(m: int, k: int | None = None, batch: int | None = None, c: bool = False, alpha: float = 1.0, beta: float = 1.0, **other) -> dict:
    return {"m": m, "k": m if k is None else k, "batch": batch, "c": c, "alpha": alpha, "beta": beta, **other}


def make_inputs(generator, device, dtype, *, m, k, batch=None, c=False, alpha=1.0, beta=1.0, gap=0) -> dict:
    """Normally distributed x, whose rows begin `gap` elements after the end of the one before; c is a product of the same kind."""
    sizes = (m,) if batch is None else (batch, m)

    def tensor(columns):
        return torch.randn((*sizes, columns), generator=generator, device=generator.device)

    x, other = tensor(k + gap).to(device, dtype)[..., :k], tensor(min(m, 16))
    return {"x": x, "c": (other @ other.mT).to(device, dtype) if c else None, "alpha": alpha, "beta": beta}


def tolerance(dtype: torch.dtype, *, k, alpha=1.0, **_) -> Tolerance:
    """As for `matmul`; on the diagonal the sums are of squares, and k in size."""
    epsilon = torch.finfo(torch.float32).eps
    return Tolerance(relative=epsilon * (16 + k**0.5), absolute=epsilon * (abs(alpha) + 1) * (8 + 8 * k**0.5 + k))


def hints(failure) -> str | None:
    """The classic mistake: one triangle alone."""
    got = failure.got
    if isinstance(got, torch.Tensor) and got.dim() >= 2 and got.shape[-1] == got.shape[-2] and got.shape[-1] > 1:
        lower, upper = got.tril(-1), got.triu(1)
        if not lower.any() and upper.any() or lower.any() and not upper.any():
            return "One triangle of your result is zero: what is computed once belongs into both places."
    return None


def load_variants() -> Mapping[str, Variant]:
    from labkernels.symmetric_matmul.variants import VARIANTS

    return VARIANTS


def _complete(dtype, *, m, k=None, batch=None, c=False, alpha=1.0, beta=1.0) -> dict:
    return shape(m, k, batch, c, alpha, beta)


OP = Op(
    name="symmetric_matmul",
    summary="alpha * x @ x^T + beta * c, symmetric",
    load_variants=load_variants,
    reference=reference,
    native=native,
    problem=problem,
    make_inputs=make_inputs,
    axes=("batch", "row", "col"),
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    small_shapes=(shape(1), shape(3, 5, gap=1), shape(33, 40, 2, True), shape(40, 24, None, True, 0.5, -2.0)),
    check_shapes=(
        shape(1),
        shape(3),
        shape(33),
        shape(32),
        shape(64, 200),
        shape(130, 24, gap=8),
        shape(1, 100, 3),
        shape(70, 1),
        shape(48, 33, 2),
        shape(136, 72, 2, True, 1.0, 1.0),
        shape(264, 64, None, True, 2.0315, -4.775),
        shape(72, 136, 3, alpha=-0.5),
        shape(37, 51, gap=3),
        shape(20, 0, None, True),
    ),
    large_shapes=(shape(1536, 4096, 2, True, 2.0, -1.0), shape(1000, 776), shape(384, 1536, 5)),
    tolerance=tolerance,
    hints=hints,
    complete_shape=_complete,
    sweep={"dtype": ["bfloat16"], "m": [1024, 2048, 4096, 8192]},
    record_sweeps=(
        {"dtype": ["bfloat16"], "m": [1024, 2048, 4096, 8192]},
        {"dtype": ["bfloat16"], "m": [1536], "k": [1536, 4096], "batch": [1, 24], "c": [True]},
        {"dtype": ["bfloat16"], "m": [4096], "k": [11008], "batch": [1, 4]},
    ),
    flops=lambda *, m, k, batch=None, **_: (batch or 1) * m * (m + 1) * k,
    bytes_moved=lambda dtype, *, m, k, batch=None, c=False, **_: (batch or 1) * (m * k + m * m * (1 + c)) * dtype.itemsize,
    peers={"cublas": Peer("cublas", native, lambda x, c=None, alpha=1.0, beta=1.0: None if x.is_cuda else "needs a GPU")},
)
