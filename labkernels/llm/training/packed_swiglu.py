"""SwiGLU between products that are PyTorch's or in fp8, for training: the compiler's forward pass, and our kernel for the backward pass.

Notable: gate and up are halves of one product. Compiled, the forward pass is one kernel that reads each number once. The backward pass
puts two halves together again, and there the compiler reads everything twice; `swiglu_backward` writes both halves where they belong.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from labkernels.elementwise import swiglu
from labkernels.llm.model import Context, FeedForward, Transformer


class _PackedSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up):
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx, grad):
        (gate_up,) = ctx.saved_tensors
        return torch.ops.labkernels.swiglu_packed_backward(grad, gate_up)


def packed_swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of (..., 2 n), all gates before all ups."""
    return _PackedSwiGLU.apply(gate_up) if torch.compiler.is_compiling() else swiglu(gate_up)


class PackedFeedForward(FeedForward):
    """The FFN of the model with `packed_swiglu`, where its products are PyTorch's or in fp8."""

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        if context.kernels["ffn"] == "labkernels":
            return super().forward(x, context)
        return self.down_proj(packed_swiglu(self.gate_up_proj(x)))


def convert(model: Transformer) -> Transformer:
    """Have the model's SwiGLU layers take it, in place."""
    for layer in model.modules():
        if type(layer) is FeedForward and layer.activation == "swiglu":
            layer.__class__ = PackedFeedForward
    return model
