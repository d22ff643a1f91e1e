"""Linear layers whose products are of 8-bit floats, with gradients, for training on Hopper.

Notable:
- a product of fp8 numbers takes half the time and half the memory traffic of bfloat16; what is kept for the backward pass is fp8, too
- "tensor": one scale a tensor, 448 over its largest number, found anew in every step; all three products are fp8: x w^T, dy w and dy^T x.
  Activations and weights are e4m3, gradients e5m2, which has more range and less precision (Micikevicius et al., arXiv:2209.05433)
- fp8 operands must be dense along the axis that is summed over, another one in each product: `fp8_cast` writes both orders in one pass
  (fp8_cast.cu)
- between the products of a SwiGLU network the gradient is never written in 16 bits: a bound of its largest number is known before, and
  e5m2 has range to spare for what the bound is too large
- "row": a scale for each token and each row of a weight, so one large number spoils its own row alone; the product dy^T x sums over the
  tokens, whose scales differ, and stays bfloat16
- weights themselves, what is between the layers, embeddings and the head stay as they are; on the CPU the same numbers are multiplied in
  float32
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from labkernels.cuda.variants import ceil_div, kernel
from labkernels.errors import ArgumentError
from labkernels.llm.model import Context, FeedForward

FILE = Path(__file__).with_name("fp8_cast.cu")
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
TILE = 128  # of fp8_cast.cu
SMALLEST = 1e-12  # that a largest number is taken to be
STEEPEST = 1.1  # more than the largest slope of silu, 1.0998


@torch.library.custom_op("labkernels::fp8_cast", mutates_args=())
def fp8_cast(x: torch.Tensor, scale: torch.Tensor, e5m2: bool = False, turned: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """x (rows, cols), multiples of 16, times `scale` (one float32): as fp8 (rows, cols), and, if `turned`, as fp8 (cols, rows); else that is empty."""
    rows, cols = x.shape
    values, across = _outputs(x, e5m2, turned)
    if x.stride(1) != 1 or x.stride(0) * x.element_size() % 16 or x.data_ptr() % 16:
        x = x.contiguous()
    if values.numel():
        grid = ceil_div(cols, TILE), ceil_div(rows, TILE)
        args = (x, x.stride(0), scale, values.view(torch.uint8), across.view(torch.uint8) if turned else None, rows, cols)
        kernel(FILE, "fp8_cast", x.dtype, str(e5m2).lower())(grid, 256, args)
    return values, across


@fp8_cast.register_fake
def _(x, scale, e5m2=False, turned=True):
    return _outputs(x, e5m2, turned)


def _outputs(x: torch.Tensor, e5m2: bool, turned: bool) -> tuple[torch.Tensor, torch.Tensor]:
    rows, cols = x.shape
    dtype = E5M2 if e5m2 else E4M3
    return x.new_empty((rows, cols), dtype=dtype), x.new_empty((cols, rows) if turned else (0,), dtype=dtype)


@torch.library.custom_op("labkernels::fp8_swiglu_backward", mutates_args=())
def fp8_swiglu_backward(grad: torch.Tensor, gate_up: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of silu(gate) * up from grad (rows, n), times `scale`, in e5m2: (rows, 2 n) and (2 n, rows). gate_up (rows, 2 n); multiples of 16."""
    grad, gate_up = grad.contiguous(), gate_up.contiguous()
    rows, n = grad.shape
    values, turned = _outputs(gate_up, True, True)
    if values.numel():
        args = (grad, gate_up, scale, values.view(torch.uint8), turned.view(torch.uint8), rows, n)
        kernel(FILE, "fp8_swiglu_backward", grad.dtype)((ceil_div(n, TILE), ceil_div(rows, TILE)), 256, args)
    return values, turned


@fp8_swiglu_backward.register_fake
def _(grad, gate_up, scale):
    return _outputs(gate_up, True, True)


def scale_of(x: torch.Tensor, dtype: torch.dtype = E4M3) -> torch.Tensor:
    """What brings x's largest number to that of `dtype`, one float32. Row by row first: a compiler joins that to what made the row."""
    return torch.finfo(dtype).max / x.abs().amax(-1).amax().float().clamp(min=SMALLEST)


def rows_to_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(values, inverse scales (rows, 1)) of x (rows, cols) with a scale a row."""
    largest = x.abs().amax(-1, keepdim=True).float().clamp(min=SMALLEST)
    return (x.float() * (448.0 / largest)).clamp(-448.0, 448.0).to(E4M3), largest / 448.0


def matmul_fp8(a: torch.Tensor, b: torch.Tensor, inverse_a: torch.Tensor, inverse_b: torch.Tensor, fast: bool = True) -> torch.Tensor:
    """(inverse_a * a) @ (b * inverse_b), bfloat16: a (m, k) with dense rows, b (k, n) with dense columns. `fast`: sums stay in the tensor cores."""
    if a.is_cuda:
        return torch._scaled_mm(a, b, inverse_a, inverse_b, out_dtype=torch.bfloat16, use_fast_accum=fast)
    return ((a.float() * inverse_a) @ (b.float() * inverse_b)).to(torch.bfloat16)


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
        dx = matmul_fp8(g8, w8_turned.t(), inverse, scale_w.reciprocal())
        dweight = matmul_fp8(g8_turned, x8_turned.t(), inverse, scale_x.reciprocal())
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
        dhidden = matmul_fp8(g8, w8_2_turned.t(), scale.reciprocal(), scale_2.reciprocal())
        dw2 = matmul_fp8(g8_turned, h8_turned.t(), scale.reciprocal(), scale_h.reciprocal())
        bound = dhidden.abs().amax(-1).amax().float() * largest.float() * STEEPEST
        scale = torch.finfo(E5M2).max / bound.clamp(min=SMALLEST)
        p8, p8_turned = fp8_swiglu_backward(dhidden, gate_up, scale)
        dx = matmul_fp8(p8, w8_1_turned.t(), scale.reciprocal(), scale_1.reciprocal())
        dw1 = matmul_fp8(p8_turned, x8_turned.t(), scale.reciprocal(), scale_x.reciprocal())
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


class Fp8Linear(nn.Linear):
    """nn.Linear without bias, its products in fp8. The weight stays what it is, so that checkpoints and optimisers see no difference."""

    scales = "tensor"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) bfloat16 -> (..., out). Numbers of tokens that are no multiple of 16 are multiplied in bfloat16."""
        tokens = x.numel() // x.shape[-1]
        if tokens % 16 or x.dtype != torch.bfloat16:
            return super().forward(x)
        return FUNCTIONS[self.scales].apply(x.reshape(tokens, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class Fp8FeedForward(FeedForward):
    """A SwiGLU network whose two layers are Fp8Linear with a scale a tensor."""

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        tokens = x.numel() // x.shape[-1]
        if tokens % 16 or x.dtype != torch.bfloat16:
            return super().forward(x, context)
        return _SwiGLU.apply(x.reshape(tokens, x.shape[-1]), self.gate_up_proj.weight, self.down_proj.weight).view(x.shape)


def convert(model: nn.Module, scales: str = "tensor") -> nn.Module:
    """Make the linear layers of a Transformer's blocks Fp8Linear, in place, and have the model call them. Raises ArgumentError."""
    if scales not in FUNCTIONS:
        raise ArgumentError(f"fp8_linear.convert: scales is {scales!r}; it must be one of {', '.join(map(repr, FUNCTIONS))}")
    device = next(model.parameters()).device
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise ArgumentError(f"fp8_linear.convert: {torch.cuda.get_device_name(device)} has no 8-bit floats; Ada and Hopper have")
    for name, layer in model.blocks.named_modules():
        if type(layer) is nn.Linear:
            if layer.bias is not None or layer.in_features % 16 or layer.out_features % 16:
                raise ArgumentError(f"fp8_linear.convert: {name} is {layer}; it must have no bias, and sizes that are multiples of 16")
            layer.__class__ = Fp8Linear
            layer.scales = scales
    for layer in model.blocks.modules():
        if isinstance(layer, FeedForward) and layer.activation == "swiglu" and scales == "tensor":
            layer.__class__ = Fp8FeedForward
    model.kernels = model.kernels | {"linear": "torch", "ffn": "torch"}  # which call the layers
    return model
