"""Linear layers whose products are of 8-bit floats, with gradients, for training on Hopper.

Notable:
- a product of fp8 numbers takes half the time and half the memory traffic of bfloat16; what is kept for the backward pass is fp8, too
- "tensor": one scale a tensor, 448 over its largest number, found anew in every step; all three products are fp8: x w^T, dy w and dy^T x.
  Activations and weights are e4m3, gradients e5m2, which has more range and less precision (Micikevicius et al., arXiv:2209.05433)
- between the products of a SwiGLU network the gradient is never written in 16 bits: a bound of its largest number is known before, and
  e5m2 has range to spare for what the bound is too large
- "delayed": the same with the scales of the steps before (fp8_scales.py, fp8_delayed.py): no tensor is read for its largest number alone
- "row": a scale for each token and each row of a weight, so one large number spoils its own row alone; the product dy^T x sums over the
  tokens, whose scales differ, and stays bfloat16
- weights themselves, what is between the layers, embeddings and the head stay as they are; on the CPU the same numbers are multiplied in
  float32
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from labkernels.errors import ArgumentError
from labkernels.llm.model import Context, FeedForward, RMSNorm
from labkernels.llm.training.fp8_cast import E4M3, E5M2, FAST, SMALLEST, fp8_cast, fp8_swiglu_backward, matmul_fp8
from labkernels.llm.training.fp8_delayed import FFN_SITES, LINEAR_SITES, Cast, feed_forward, linear
from labkernels.llm.training.fp8_norm import Fp8Norm
from labkernels.llm.training.fp8_scales import DelayedScales, Sites

STEEPEST = 1.1  # more than the largest slope of silu, 1.0998


def scale_of(x: torch.Tensor, dtype: torch.dtype = E4M3) -> torch.Tensor:
    """What brings x's largest number to that of `dtype`, one float32. Row by row first: a compiler joins that to what made the row."""
    return torch.finfo(dtype).max / x.abs().amax(-1).amax().float().clamp(min=SMALLEST)


def rows_to_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(values, inverse scales (rows, 1)) of x (rows, cols) with a scale a row."""
    largest = x.abs().amax(-1, keepdim=True).float().clamp(min=SMALLEST)
    return (x.float() * (448.0 / largest)).clamp(-448.0, 448.0).to(E4M3), largest / 448.0


class _TensorScaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        scale_x, scale_w = scale_of(x), scale_of(weight)
        x8, x8_turned = fp8_cast(x, scale_x)  # (tokens, in), (in, tokens)
        w8, w8_turned = fp8_cast(weight, scale_w)  # (out, in), (in, out)
        ctx.save_for_backward(x8_turned, w8_turned, scale_x, scale_w)
        return matmul_fp8(x8, w8.t(), scale_x.reciprocal(), scale_w.reciprocal())

    @staticmethod
    def backward(ctx, grad):
        x8_turned, w8_turned, scale_x, scale_w = ctx.saved_tensors
        scale = scale_of(grad, E5M2)
        g8, g8_turned = fp8_cast(grad, scale, True)  # (tokens, out), (out, tokens)
        inverse = scale.reciprocal()
        dx = matmul_fp8(g8, w8_turned.t(), inverse, scale_w.reciprocal(), FAST["dx"])
        dweight = matmul_fp8(g8_turned, x8_turned.t(), inverse, scale_x.reciprocal(), FAST["dw"])
        return dx, dweight


class _SwiGLU(torch.autograd.Function):
    """Both products of the network and what is between them, a scale a tensor."""

    @staticmethod
    def forward(ctx, x, w1, w2):
        scale_x, scale_1, scale_2 = scale_of(x), scale_of(w1), scale_of(w2)
        x8, x8_turned = fp8_cast(x, scale_x)
        w8_1, w8_1_turned = fp8_cast(w1, scale_1)
        gate_up = matmul_fp8(x8, w8_1.t(), scale_x.reciprocal(), scale_1.reciprocal())  # (tokens, 2 n)
        gate, up = gate_up.chunk(2, dim=-1)
        hidden = F.silu(gate) * up
        largest = torch.maximum(gate.abs().amax(-1).amax(), up.abs().amax(-1).amax())
        scale_h = scale_of(hidden)
        h8, h8_turned = fp8_cast(hidden, scale_h)
        w8_2, w8_2_turned = fp8_cast(w2, scale_2)
        ctx.save_for_backward(x8_turned, w8_1_turned, gate_up, h8_turned, w8_2_turned, scale_x, scale_1, scale_h, scale_2, largest)
        return matmul_fp8(h8, w8_2.t(), scale_h.reciprocal(), scale_2.reciprocal())

    @staticmethod
    def backward(ctx, grad):
        x8_turned, w8_1_turned, gate_up, h8_turned, w8_2_turned, scale_x, scale_1, scale_h, scale_2, largest = ctx.saved_tensors
        scale = scale_of(grad, E5M2)
        g8, g8_turned = fp8_cast(grad, scale, True)
        dhidden = matmul_fp8(g8, w8_2_turned.t(), scale.reciprocal(), scale_2.reciprocal(), FAST["dx"])
        dw2 = matmul_fp8(g8_turned, h8_turned.t(), scale.reciprocal(), scale_h.reciprocal(), FAST["dw"])
        bound = dhidden.abs().amax(-1).amax().float() * largest.float() * STEEPEST
        scale = torch.finfo(E5M2).max / bound.clamp(min=SMALLEST)
        p8, p8_turned = fp8_swiglu_backward(dhidden, gate_up, scale)
        dx = matmul_fp8(p8, w8_1_turned.t(), scale.reciprocal(), scale_1.reciprocal(), FAST["dx"])
        dw1 = matmul_fp8(p8_turned, x8_turned.t(), scale.reciprocal(), scale_x.reciprocal(), FAST["dw"])
        return dx, dw1, dw2


class _RowScaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        x8, inverse_x = rows_to_fp8(x)
        w8, inverse_w = rows_to_fp8(weight)
        ctx.save_for_backward(x, weight)
        return matmul_fp8(x8, w8.t(), inverse_x, inverse_w.t())

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        g8, inverse_g = rows_to_fp8(grad)
        w8, inverse_w = rows_to_fp8(weight.t().contiguous())  # (in, out), a scale for each of dx's columns
        dx = matmul_fp8(g8, w8.t(), inverse_g, inverse_w.t())
        return dx, grad.t() @ x


FUNCTIONS = {"tensor": _TensorScaled, "row": _RowScaled}
SCALES = (*FUNCTIONS, "delayed")


class Fp8Linear(nn.Linear):
    """nn.Linear without bias, its products in fp8. The weight stays what it is, so that checkpoints and optimisers see no difference."""

    scales = "tensor"
    sites: Sites | None = None  # of "delayed": x, the weight, the gradient

    def forward(self, x: torch.Tensor | Cast) -> torch.Tensor:
        """(..., in) bfloat16 -> (..., out). Numbers of tokens that are no multiple of 16 are multiplied in bfloat16."""
        if isinstance(x, Cast):
            return linear(x, self.weight, self.sites)
        tokens = x.numel() // x.shape[-1]
        if tokens % 16 or x.dtype != torch.bfloat16:
            return super().forward(x)
        if self.scales == "delayed":
            return linear(x, self.weight, self.sites)
        return FUNCTIONS[self.scales].apply(x.reshape(tokens, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class Fp8FeedForward(FeedForward):
    """A SwiGLU network whose two layers are Fp8Linear with a scale a tensor."""

    sites: Sites | None = None  # of "delayed": x, both weights, the hidden layer, its gradient, the result's

    def forward(self, x: torch.Tensor | Cast, context: Context) -> torch.Tensor:
        weights = self.gate_up_proj.weight, self.down_proj.weight
        if isinstance(x, Cast):
            return feed_forward(x, *weights, self.sites)
        tokens = x.numel() // x.shape[-1]
        if tokens % 16 or x.dtype != torch.bfloat16:
            return super().forward(x, context)
        if self.sites is not None:
            return feed_forward(x, *weights, self.sites)
        return _SwiGLU.apply(x.reshape(tokens, x.shape[-1]), *weights).view(x.shape)


def convert(model: nn.Module, scales: str = "tensor", device: torch.device | None = None) -> nn.Module:
    """Make the linear layers of a Transformer's blocks Fp8Linear, in place, and have the model call them. `device`: where its weights will be, if they
    are not there yet. Raises ArgumentError."""
    if scales not in SCALES:
        raise ArgumentError(f"fp8_linear.convert: scales is {scales!r}; it must be one of {', '.join(map(repr, SCALES))}")
    device = next(model.parameters()).device if device is None else device
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise ArgumentError(f"fp8_linear.convert: {torch.cuda.get_device_name(device)} has no 8-bit floats; Ada and Hopper have")
    for name, layer in model.blocks.named_modules():
        if type(layer) is nn.Linear:
            if layer.bias is not None or layer.in_features % 16 or layer.out_features % 16:
                raise ArgumentError(f"fp8_linear.convert: {name} is {layer}; it must have no bias, and sizes that are multiples of 16")
            layer.__class__ = Fp8Linear
            layer.scales = scales
    for layer in model.blocks.modules():
        if isinstance(layer, FeedForward) and layer.activation == "swiglu" and scales != "row":
            layer.__class__ = Fp8FeedForward
    if scales == "delayed":
        _give_sites(model, device)
    model.kernels = model.kernels | {"linear": "torch", "ffn": "torch"}  # which call the layers
    return model


def _give_sites(model: nn.Module, device: torch.device) -> None:
    """Each layer its sites, and the model all of them, as `model.fp8_scales`."""
    networks = [layer for layer in model.blocks.modules() if isinstance(layer, Fp8FeedForward)]
    inside = {id(each) for layer in networks for each in (layer.gate_up_proj, layer.down_proj)}
    takers = [(layer, FFN_SITES) for layer in networks]
    takers += [(layer, LINEAR_SITES) for layer in model.blocks.modules() if isinstance(layer, Fp8Linear) and id(layer) not in inside]
    scales = DelayedScales([site for _, sites in takers for site in sites], device)
    for layer, sites in zip((layer for layer, _ in takers), scales.parts([len(sites) for _, sites in takers])):
        layer.sites = sites
    for layer in (each for network in networks for each in (network.gate_up_proj, network.down_proj)):
        layer.scales = "tensor"  # where one is called alone
    for block in model.blocks:
        for norm, taker in ((block.attention_norm, block.attention.qkv_proj), (block.ffn_norm, block.ffn)):
            if type(norm) is RMSNorm and getattr(taker, "sites", None) is not None:
                norm.__class__, norm.site = Fp8Norm, Sites(taker.sites.rows[0], taker.sites.fresh)
    model.fp8_scales = scales
