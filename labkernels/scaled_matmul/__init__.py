"""Matrix multiplication of 8-bit floats, with the scales that brought the numbers into their range."""

import torch


def scaled_matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """(scale_a * a) @ (b * scale_b) + bias, by the highest variant that accepts the inputs: its sums are float32's, never those of 14 bits that fp8
    tensor cores keep. lk.ops["scaled_matmul"].variants has faster ones that leave them there: v2_hopper, v3_tall_fast.

    a (m, k) with dense rows and b (k, n) with dense columns (`weight.t()` of a linear layer) are float8_e4m3fn. Scales are float32:
    scale_a one a row, (m, 1) or (m,), scale_b one a column, (1, n) or (n,), or either one number for the whole matrix, in a tensor without
    axes. bias (n,) is of out_dtype, bfloat16 or float16. Returns a new contiguous tensor (m, n) of out_dtype. Raises ArgumentError that
    names the wrong input. Forward only. Under torch.compile this is the operator `torch.ops.labkernels.scaled_matmul`.
    """
    import labkernels.torch_extension  # noqa: F401  defines the operator
    from labkernels.scaled_matmul.op import OP

    if torch.compiler.is_compiling():
        return torch.ops.labkernels.scaled_matmul(a, b, scale_a, scale_b, bias, out_dtype)
    return OP.run(a=a, b=b, scale_a=scale_a, scale_b=scale_b, bias=bias, out_dtype=out_dtype)
