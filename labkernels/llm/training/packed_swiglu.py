"""A SwiGLU network for training whose products are PyTorch's (cuBLAS), and what is between them our kernels': labkernels::swiglu_ffn, with gradients.

Notable: gate and up are halves of one product. Compiled by PyTorch, the backward pass puts two halves together again and reads everything twice, and the
hidden layer is kept for the second weight's gradient; here both halves are written where they belong, and the hidden layer beside them once more, which
costs a sixth of that walk and keeps 268 MB a layer free at 32768 tokens and 4096 columns. Which products are faster, cuBLAS's or matmul's v7, depends on
the GPU's power limit: data/measured/h200/training.csv has both.
"""

from __future__ import annotations

import torch

from labkernels.ffn.ffn_backward_variants import activation_gradient
from labkernels.ffn.variants import activated
from labkernels.llm.linear import cast_for_autocast
from labkernels.llm.model import Context, FeedForward, Transformer
from labkernels.torch_extension.operators import LIBRARY, define

SCHEMAS = {
    "swiglu_ffn": "(Tensor x, Tensor w1, Tensor w2) -> (Tensor y, Tensor gate_up)",
    "swiglu_ffn_backward": "(Tensor grad, Tensor x, Tensor gate_up, Tensor w1, Tensor w2) -> (Tensor dx, Tensor dw1, Tensor dw2)",
}


def swiglu_ffn(x, w1, w2):
    """x (tokens, embed), w1 (2 n, embed), all gates before all ups, w2 (embed, n)."""
    gate_up = torch.mm(x, w1.t())
    return torch.mm(activated(gate_up, "swiglu"), w2.t()), gate_up


def swiglu_ffn_backward(grad, x, gate_up, w1, w2):
    inner = torch.mm(grad, w2)
    d_gate_up, hidden = activation_gradient(inner, gate_up, "swiglu")
    del inner
    dw2 = torch.mm(grad.t(), hidden)
    del hidden
    return torch.mm(d_gate_up, w1), torch.mm(d_gate_up.t(), x), dw2


def swiglu_ffn_fake(x, w1, w2):
    return x.new_empty(x.shape[0], w2.shape[0]), x.new_empty(x.shape[0], w1.shape[0])


def swiglu_ffn_backward_fake(grad, x, gate_up, w1, w2):
    return tuple(each.new_empty(each.shape) for each in (x, w1, w2))


def _save(ctx, inputs, output) -> None:
    x, w1, w2 = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1], w1, w2)


def _gradient(ctx, grad, _):
    return torch.ops.labkernels.swiglu_ffn_backward(grad.contiguous(), *ctx.saved_tensors)


class PackedFeedForward(FeedForward):
    """The FFN of the model with `swiglu_ffn`, where its products are PyTorch's."""

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        plain = all(type(layer) is torch.nn.Linear for layer in (self.gate_up_proj, self.down_proj))
        if context.kernels["ffn"] == "labkernels" or not plain:
            return super().forward(x, context)
        rows, *weights = cast_for_autocast(x.reshape(-1, x.shape[-1]), self.gate_up_proj.weight, self.down_proj.weight)
        return torch.ops.labkernels.swiglu_ffn(rows, *weights)[0].view(x.shape)


def convert(model: Transformer) -> Transformer:
    """Have the model's SwiGLU layers take it, in place."""
    for layer in model.modules():
        if type(layer) is FeedForward and layer.activation == "swiglu":
            layer.__class__ = PackedFeedForward
    return model


for _name, _schema in SCHEMAS.items():
    define(_name, _schema, globals()[_name], globals()[f"{_name}_fake"])
torch.library.register_autograd("labkernels::swiglu_ffn", _gradient, setup_context=_save, lib=LIBRARY)
