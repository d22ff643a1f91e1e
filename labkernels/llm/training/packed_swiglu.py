"""A SwiGLU network for training whose products are PyTorch's (cuBLAS) or do what is between them themselves: labkernels::swiglu_ffn, with gradients.

    labkernels::swiglu_ffn(x, w1, w2, fused, keep) -> (y, gate_up, hidden)
    labkernels::swiglu_ffn_backward(grad, x, gate_up, hidden, w1, w2, fused, keep) -> (dx, dw1, dw2)

Notable: gate and up are halves of one product. Compiled by PyTorch, the backward pass puts two halves together again and reads everything twice; here both
halves are written where they belong. `fused`: the two products next to SwiGLU do it with their sums (products.cu), and no kernel walks over gate and up.
`keep`: the hidden layer stays for the second weight's gradient, 268 MB a layer at 32768 tokens and 4096 columns; else it is made once more.
Which plain products are faster, cuBLAS's or matmul's v7, depends on the GPU's power limit: data/measured/h200/training.csv has both.
"""

from __future__ import annotations

import torch

from labkernels.ffn.ffn_backward_variants import activation_gradient
from labkernels.ffn.variants import activated
from labkernels.llm.linear import cast_for_autocast
from labkernels.llm.model import Context, FeedForward, Transformer
from labkernels.llm.training import products
from labkernels.torch_extension.operators import LIBRARY, define

SCHEMAS = {
    "swiglu_ffn": "(Tensor x, Tensor w1, Tensor w2, bool fused, bool keep) -> (Tensor y, Tensor gate_up, Tensor hidden)",
    "swiglu_ffn_backward": "(Tensor grad, Tensor x, Tensor gate_up, Tensor hidden, Tensor w1, Tensor w2, bool fused, bool keep) "
    "-> (Tensor dx, Tensor dw1, Tensor dw2)",
}
MANY_TOKENS = 2048  # from which the products of products.cu are taken, which were measured at 32768: they have tiles of 128 x 256


def takes_fused(x, w1, w2) -> bool:
    return x.is_cuda and len(x) >= MANY_TOKENS and products.accepts_swiglu(x, w1, w2) is None


def swiglu_ffn(x, w1, w2, fused, keep):
    """x (tokens, embed), w1 (2 n, embed), all gates before all ups, w2 (embed, n)."""
    if fused and takes_fused(x, w1, w2):
        gate_up, hidden = products.swiglu_forward(x, w1)
    else:
        gate_up = torch.mm(x, w1.t())
        hidden = activated(gate_up, "swiglu")
    return torch.mm(hidden, w2.t()), gate_up, hidden if keep else x.new_empty(0)


def swiglu_ffn_backward(grad, x, gate_up, hidden, w1, w2, fused, keep):
    if fused and takes_fused(x, w1, w2):
        d_gate_up, again = products.swiglu_backward(grad, w2, gate_up, not keep)
    else:
        d_gate_up, again = activation_gradient(torch.mm(grad, w2), gate_up, "swiglu")
    dw2 = torch.mm(grad.t(), hidden if keep else again)
    del again
    return torch.mm(d_gate_up, w1), torch.mm(d_gate_up.t(), x), dw2


def swiglu_ffn_fake(x, w1, w2, fused, keep):
    return x.new_empty(x.shape[0], w2.shape[0]), x.new_empty(x.shape[0], w1.shape[0]), x.new_empty((x.shape[0], w2.shape[1]) if keep else (0,))


def swiglu_ffn_backward_fake(grad, x, gate_up, hidden, w1, w2, fused, keep):
    return tuple(each.new_empty(each.shape) for each in (x, w1, w2))


def _save(ctx, inputs, output) -> None:
    x, w1, w2, *ctx.how = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, *output[1:], w1, w2)


def _gradient(ctx, grad, *_):
    return *torch.ops.labkernels.swiglu_ffn_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.how), None, None


class PackedFeedForward(FeedForward):
    """The FFN of the model with `swiglu_ffn`, where its products are PyTorch's."""

    fused, keep = False, False

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        plain = all(type(layer) is torch.nn.Linear for layer in (self.gate_up_proj, self.down_proj))
        if context.kernels["ffn"] == "labkernels" or not plain:
            return super().forward(x, context)
        rows, *weights = cast_for_autocast(x.reshape(-1, x.shape[-1]), self.gate_up_proj.weight, self.down_proj.weight)
        return torch.ops.labkernels.swiglu_ffn(rows, *weights, self.fused, self.keep)[0].view(x.shape)


def convert(model: Transformer, fused: bool = False, keep: bool = False) -> Transformer:
    """Have the model's SwiGLU layers take it, in place."""
    for layer in model.modules():
        if type(layer) is FeedForward and layer.activation == "swiglu":
            layer.__class__ = PackedFeedForward
            layer.fused, layer.keep = fused, keep
    return model


for _name, _schema in SCHEMAS.items():
    define(_name, _schema, globals()[_name], globals()[f"{_name}_fake"])
torch.library.register_autograd("labkernels::swiglu_ffn", _gradient, setup_context=_save, lib=LIBRARY)
