"""Quantised weights: formats, quantisers, and the product of activations with them."""

import torch

from labkernels.quant.formats import QuantizedWeight
from labkernels.quant.gptq import quantize_gptq
from labkernels.quant.quantizers import quantize

__all__ = ["QuantizedWeight", "quant_matmul", "quantize", "quantize_gptq"]


def quant_matmul(x: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    """x @ w^T with a quantised weight, by the variant that was measured to be fastest for these inputs.

    x (m, k) float32, bfloat16 or float16, the weight a QuantizedWeight of shape (n, k) on the same device. Returns a new contiguous (m, n)
    of x's dtype; products are exact, sums float32. float32 has the slow first variant only. Raises ArgumentError that names the wrong input.
    Forward only. Under torch.compile this is the operator `torch.ops.labkernels.quant_matmul`. lk.explain("quant_matmul", x, weight) says
    which variant runs, and why. The int4 formats follow Frantar et al., "GPTQ", 2023; NF4 Dettmers et al., "QLoRA", 2023.
    """
    if torch.compiler.is_compiling():
        import labkernels.torch_extension  # noqa: F401  defines the operator

        return torch.ops.labkernels.quant_matmul(
            x, weight.packed, weight.scales, weight.codebook, weight.scheme, weight.group_size, weight.shape[0], weight.shape[1]
        )
    from labkernels.quant.quant_matmul_op import OP

    return OP.run(x=x, weight=weight)
