"""A weight times a few rows of activations, the whole of a language model that writes one token after another: with what stands before and behind."""

import torch


def gemv(
    x: torch.Tensor,
    w: torch.Tensor,
    norm_weight: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    activation: str | None = None,
    eps: float = 1e-5,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """norm(x) @ w^T (+ residual), or of that silu(gates) * ups, in one launch, by the fastest variant that accepts the inputs.

    x (m, k) float32, bfloat16 or float16, m small: the weight is read once for 64 rows at most; w (n, k) of x's dtype. norm_weight (k,): RMSNorm
    of x first, with eps. activation "swiglu": the first n / 2 rows of w are gates, the others ups, and the result has n / 2 columns. residual of
    the result's shape, of x's dtype. Returns (m, n or n / 2) of out_dtype, x's or float32. Sums are float32; in 16 bits x * norm_weight is
    rounded once. A row's result does not depend on the others as long as there are at most 4, or 8 if
    k is at most 8192. Raises ArgumentError. Forward only.
    """
    from labkernels.gemv.op import OP

    return OP.run(x=x, w=w, norm_weight=norm_weight, residual=residual, activation=activation, eps=eps, out_dtype=out_dtype)
