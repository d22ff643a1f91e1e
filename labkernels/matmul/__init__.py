"""Matrix multiplication, with what a layer of a network does to the product."""

import torch


def matmul(
    a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """activation(a @ b + bias) + residual, by the fastest variant that accepts the inputs.

    a (m, k), b (k, n), bias (n,), residual (m, n), all float32, bfloat16 or float16, on one device; sums are kept in float32. Rows of a and
    residual lie dense in memory, any distance apart; of b either the rows do or the columns (`weight.t()` of a linear layer). `activation`
    is None, "relu", "gelu" (by erf, as PyTorch's default), "gelu_tanh" or "silu". Returns a new contiguous tensor (m, n) of the dtype of a.
    All tensors get gradients. Where one is wanted, under torch.compile and under autocast this is the operator `torch.ops.labkernels.matmul`.
    Raises ArgumentError that names the wrong input.
    """
    from labkernels.matmul.op import OP
    from labkernels.torch_extension import goes_through_torch

    if goes_through_torch(a, b, bias, residual):
        return torch.ops.labkernels.matmul(a, b, bias, activation, residual)
    return OP.run(a=a, b=b, bias=bias, activation=activation, residual=residual)
