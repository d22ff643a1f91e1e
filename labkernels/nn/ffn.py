"""`FusedFFN`: the feed-forward network of a transformer as a layer."""

from __future__ import annotations

import torch
from torch import nn

from labkernels.errors import ArgumentError
from labkernels.ffn import ffn, ffn_fp8
from labkernels.ffn.fp8 import fp8_rows
from labkernels.ffn.reference import ACTIVATIONS, is_gated


class FusedFFN(nn.Module):
    """act(x W1^T + b1) W2^T + b2 by `lk.functional.ffn`, which fuses the activation into the first product, or both products into one kernel.

        layer = FusedFFN(4096, 11008, activation="swiglu", bias=False).to("cuda", torch.bfloat16)
        y = layer(x)                                            # (..., embed_dim) -> the same shape

    `activation` is "gelu" (by erf), "gelu_tanh" or "swiglu", silu(gate) * up.

    Parameters, by their names in state_dict():
        up_proj.weight       (ffn_dim, embed_dim), with bias up_proj.bias (ffn_dim,)              of "gelu" and "gelu_tanh"
        gate_up_proj.weight  (2 ffn_dim, embed_dim), with bias gate_up_proj.bias (2 ffn_dim,)     of "swiglu": all gates, then all ups
        down_proj.weight     (embed_dim, ffn_dim), with bias down_proj.bias (embed_dim,)
    A state_dict with gate_proj and up_proj, as Llama's, is taken for "swiglu", too. Raises ArgumentError that names the argument.
    """

    def __init__(
        self,
        embed_dim: int,
        ffn_dim: int,
        activation: str = "gelu",
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        for name, value in (("embed_dim", embed_dim), ("ffn_dim", ffn_dim)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"FusedFFN: {name} is {value!r}; it must be an int of at least 1")
        if activation not in ACTIVATIONS:
            raise ArgumentError(f"FusedFFN: activation is {activation!r}; it must be one of {', '.join(map(repr, ACTIVATIONS))}")
        self.embed_dim, self.ffn_dim, self.activation = embed_dim, ffn_dim, activation
        where = {"bias": bias, "device": device, "dtype": dtype}
        if is_gated(activation):
            self.gate_up_proj = nn.Linear(embed_dim, 2 * ffn_dim, **where)
        else:
            self.up_proj = nn.Linear(embed_dim, ffn_dim, **where)
        self.down_proj = nn.Linear(ffn_dim, embed_dim, **where)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 0 or x.shape[-1] != self.embed_dim:
            raise ArgumentError(f"FusedFFN: x has shape {tuple(x.shape)}; it must be (..., embed_dim = {self.embed_dim})")
        first, second = self.gate_up_proj if is_gated(self.activation) else self.up_proj, self.down_proj
        tokens = x.reshape(-1, self.embed_dim) if x.dim() == 1 else x
        return ffn(tokens, first.weight, second.weight, first.bias, second.bias, self.activation).view(x.shape)

    def to_fp8(self) -> "Fp8FFN":
        """The same network for inference, its weights rounded to 8-bit floats: half the memory, and products at up to twice the speed."""
        return Fp8FFN(self)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        for kind in ("weight", "bias"):
            apart = [f"{prefix}{name}.{kind}" for name in ("gate_proj", "up_proj")]
            if is_gated(self.activation) and all(name in state_dict for name in apart):
                state_dict[f"{prefix}gate_up_proj.{kind}"] = torch.cat([state_dict.pop(name) for name in apart])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"embed_dim={self.embed_dim}, ffn_dim={self.ffn_dim}, activation={self.activation!r}"


class Fp8FFN(nn.Module):
    """A FusedFFN of bfloat16 whose weights are 8-bit floats with a scale a row: `labkernels.ffn.ffn_fp8`. Forward only.

    Buffers w1, w2 (float8_e4m3fn), scale_1, scale_2 (float32), b1, b2 (None without biases). Made by `FusedFFN.to_fp8()`.
    """

    def __init__(self, layer: FusedFFN):
        super().__init__()
        self.activation = layer.activation
        first = layer.gate_up_proj if is_gated(layer.activation) else layer.up_proj
        for number, linear in (("1", first), ("2", layer.down_proj)):
            values, scales = fp8_rows(linear.weight.detach())
            self.register_buffer(f"w{number}", values)
            self.register_buffer(f"scale_{number}", scales)
            self.register_buffer(f"b{number}", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ffn_fp8(x, self.w1, self.w2, self.scale_1, self.scale_2, self.b1, self.b2, self.activation)
