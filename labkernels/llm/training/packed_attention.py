"""The projection to queries, keys and values, RoPE and causal attention as one torch operator for training: labkernels::projected_attention, with gradients.

    labkernels::projected_attention(x, weight, angles, positions, cu_seqlens, heads, kv_heads, fused, cudnn) -> (out, qkv, lse)
    labkernels::projected_attention_backward(grad_out, x, weight, qkv, out, lse, ...the same) -> (dx, dweight)

x (batch, seq, embed), weight (qkv_dim, embed), out (batch, seq, heads head_dim), qkv as the projection makes it, its queries and keys turned.

Notable: the product turns what it makes before it writes it (products.cu), so queries and keys are there once, where `rope_attention` keeps them turned and
not: 126 MB a layer less at 32768 tokens of 24 + 6 heads of 64, and one walk over them less. Without `fused`, and where that kernel does not run, PyTorch
multiplies, and RoPE turns in place. `cudnn`: see rope_attention.py.
"""

from __future__ import annotations

import torch

from labkernels.llm.linear import cast_for_autocast
from labkernels.llm.model import Attention, Context, Transformer
from labkernels.llm.rope_attention import attend, gradient_of_projection, parts, turn
from labkernels.llm.training import products
from labkernels.torch_extension.operators import LIBRARY, define

MANY_TOKENS = 2048  # from which the product that turns is taken, which was measured at 32768: it has tiles of 128 x 256
_SIZES = "Tensor angles, Tensor? positions, Tensor? cu_seqlens, int heads, int kv_heads, bool fused, bool cudnn"
SCHEMAS = {
    "projected_attention": f"(Tensor x, Tensor weight, {_SIZES}) -> (Tensor out, Tensor qkv, Tensor lse)",
    "projected_attention_backward": f"(Tensor grad_out, Tensor x, Tensor weight, Tensor qkv, Tensor out, Tensor lse, {_SIZES}) "
    "-> (Tensor dx, Tensor dweight)",
}


def takes_fused(rows, weight, angles, head_dim) -> bool:
    return rows.is_cuda and len(rows) >= MANY_TOKENS and products.accepts_turned(rows, weight, angles, head_dim) is None


def projected_attention(x, weight, angles, positions, cu_seqlens, heads, kv_heads, fused, cudnn):
    batch, seq, embed = x.shape
    rows, head_dim = x.reshape(-1, embed), len(weight) // (heads + 2 * kv_heads)
    if fused and takes_fused(rows, weight, angles, head_dim):
        qkv = products.turned_projection(rows, weight, angles, positions, seq, head_dim, heads + kv_heads).view(batch, seq, -1)
        q, k, v = parts(qkv, heads, kv_heads)
    else:
        qkv = torch.mm(rows, weight.t()).view(batch, seq, -1)
        q, k, v = parts(qkv, heads, kv_heads)
        turn(q, k, q, k, angles, positions)
    out, lse = attend(q, k, v, cu_seqlens, cudnn)
    return out, qkv, lse


def projected_attention_fake(x, weight, angles, positions, cu_seqlens, heads, kv_heads, fused, cudnn):
    batch, seq, _ = x.shape
    head_dim = len(weight) // (heads + 2 * kv_heads)
    packed = cu_seqlens is not None or x.dtype != torch.float32
    lse = x.new_empty((heads, batch * seq) if packed else (batch, heads, seq), dtype=torch.float32)
    return x.new_empty(batch, seq, heads * head_dim), x.new_empty(batch, seq, len(weight)), lse


def projected_attention_backward(grad_out, x, weight, qkv, out, lse, angles, positions, cu_seqlens, heads, kv_heads, fused, cudnn):
    grad = gradient_of_projection(grad_out, *parts(qkv, heads, kv_heads), out, lse, angles, positions, cu_seqlens).flatten(0, 1)
    return torch.mm(grad, weight).view(x.shape), torch.mm(grad.t(), x.reshape(-1, x.shape[-1]))


def projected_attention_backward_fake(grad_out, x, weight, *_):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _save(ctx, inputs, output) -> None:
    x, weight, angles, positions, cu_seqlens, *ctx.sizes = inputs
    out, qkv, lse = output
    ctx.mark_non_differentiable(qkv, lse)
    ctx.save_for_backward(x, weight, qkv, out, lse, angles, positions, cu_seqlens)


def _gradient(ctx, grad, *_):
    found = torch.ops.labkernels.projected_attention_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.sizes)
    return *found, *[None] * 7


class PackedAttention(Attention):
    """The attention of the model with `projected_attention`, where its products are PyTorch's; below a projection of another kind, in fp8, `rope_attention`."""

    fused, cudnn = False, False

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        kernels, sizes = context.kernels, (self.num_heads, self.num_kv_heads)
        if not (kernels["rope"] == kernels["attention"] == "labkernels" and kernels["linear"] == "torch") or self.qk_norm:
            return super().forward(x, context)
        where = context.angles, context.positions, context.cu_seqlens
        if type(self.qkv_proj) is not torch.nn.Linear:
            return self.out_proj(torch.ops.labkernels.rope_attention(self.qkv_proj(x), *where, *sizes, self.cudnn)[0])
        x, weight = cast_for_autocast(x, self.qkv_proj.weight)
        return self.out_proj(torch.ops.labkernels.projected_attention(x, weight, *where, *sizes, self.fused, self.cudnn)[0])


def convert(model: Transformer, fused: bool = False, cudnn: bool = False) -> Transformer:
    """Have the model's attention take it, in place."""
    for layer in model.modules():
        if type(layer) is Attention:
            layer.__class__ = PackedAttention
            layer.fused, layer.cudnn = fused, cudnn
    return model


for _name, _schema in SCHEMAS.items():
    define(_name, _schema, globals()[_name], globals()[f"{_name}_fake"])
torch.library.register_autograd("labkernels::projected_attention", _gradient, setup_context=_save, lib=LIBRARY)
