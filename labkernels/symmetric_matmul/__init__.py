"""A matrix times its own transpose, of which only one half need be computed."""

import torch


def symmetric_matmul(x: torch.Tensor, c: torch.Tensor | None = None, alpha: float = 1.0, beta: float = 1.0) -> torch.Tensor:
    """alpha * x @ x^T + beta * c, by the fastest variant that accepts the inputs.

    x (m, k) or (batch, m, k), float32, bfloat16 or float16, with dense rows. c, if given, is a symmetric (m, m) or (batch, m, m) of x's
    dtype; whether its upper or its lower half is read is up to the variant. Returns a new contiguous symmetric matrix for each of the
    batch, summed in float32 and rounded once. Forward only. Raises ArgumentError that names the wrong input.
    """
    from labkernels.symmetric_matmul.op import OP

    return OP.run(x=x, c=c, alpha=alpha, beta=beta)
