"""Matrix multiplication in bytes: an int8 weight, and activations that are quantised as they come."""

import torch


def w8a8_matmul(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ (weight * scale).T + bias, where each row of x is rounded to int8 first (dynamic quantisation, "W8A8").

    x (..., k) is bfloat16 or float16 with dense rows, weight (n, k) int8 with dense rows, scale (n,) or (n, 1) float32: what one step of a row
    of the weight stands for. bias (n,) is of x's dtype. A row of x becomes round(127 x / max |x|), its products with the weight are summed
    exactly, in int32. Returns a new contiguous tensor (..., n) of x's dtype. A row with infinity or NaN becomes NaN. Raises ArgumentError
    that names the wrong input. Forward only. Under torch.compile this is the operator `torch.ops.labkernels.w8a8_matmul`.

    Source: Dettmers et al., LLM.int8(), 2022, without its outliers; vector-wise scales.
    """
    import labkernels.torch_extension.w8a8  # noqa: F401  defines the operator
    from labkernels.w8a8_matmul.op import OP

    if torch.compiler.is_compiling():
        return torch.ops.labkernels.w8a8_matmul(x, weight, scale, bias)
    rows = x.reshape(-1, x.shape[-1]) if x.dim() > 2 else x
    out = OP.run(x=rows, weight=weight, scale=scale, bias=bias)
    return out if rows is x else out.reshape(*x.shape[:-1], out.shape[-1])
