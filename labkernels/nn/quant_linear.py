"""`QuantLinear`: a linear layer whose weight has 4 or 8 bits a number."""

from __future__ import annotations

import torch
from torch import nn

from labkernels.errors import ArgumentError
from labkernels.quant import QuantizedWeight, quant_matmul, quantize, quantize_gptq
from labkernels.quant.formats import FOUR_BIT, GROUP_SIZES, NF4, SCHEMES, padded_columns


class QuantLinear(nn.Module):
    """y = x w^T + bias with a quantised weight: what an nn.Linear becomes for inference.

        layer = QuantLinear.from_linear(linear, "int4", group_size=128)                    # round to nearest
        layer = QuantLinear.from_linear(linear, "int4", calibration=inputs)                # GPTQ
        y = layer(x)                                                                       # (..., in_features) -> (..., out_features)

    Buffers, by their names in state_dict(): `packed`, `scales` and, for nf4 and codebook, `codebook`, as labkernels.quant.formats describes
    them; `bias` (out_features,) if there is one. A new layer holds zeros, for load_state_dict to fill. The buffers of the weight keep their dtypes
    when the module is told to change its own. Gradients flow to x, not to the weight.
    Raises ArgumentError that names the argument.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        scheme: str = "int4",
        group_size: int | None = None,
        bias: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        for name, value in (("in_features", in_features), ("out_features", out_features)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"QuantLinear: {name} is {value!r}; it must be an int of at least 1")
        if scheme not in SCHEMES:
            raise ArgumentError(f"QuantLinear: scheme is {scheme!r}; it must be one of {', '.join(SCHEMES)}")
        four_bit = scheme in FOUR_BIT
        group_size = 128 if group_size is None and four_bit else group_size
        if group_size not in (GROUP_SIZES if four_bit else (None,)):
            choices = ", ".join(map(str, GROUP_SIZES)) if four_bit else "None, for it has one scale a row"
            raise ArgumentError(f"QuantLinear: group_size is {group_size!r}; for {scheme} it must be {choices}")
        self.in_features, self.out_features, self.scheme, self.group_size = in_features, out_features, scheme, group_size
        columns = padded_columns(in_features, scheme, group_size)
        zeros = lambda *shape, dtype: torch.zeros(*shape, dtype=dtype, device=device)  # noqa: E731
        if four_bit:
            self.register_buffer("packed", zeros(out_features, columns // 8, dtype=torch.int32))
            pair = (2,) if scheme == "int4" else ()
            self.register_buffer("scales", zeros(columns // group_size, out_features, *pair, dtype=torch.bfloat16))
        else:
            self.register_buffer("packed", zeros(out_features, columns, dtype=torch.int8 if scheme == "int8" else torch.float8_e4m3fn))
            self.register_buffer("scales", zeros(out_features, dtype=torch.float32))
        codebook = torch.tensor(NF4, device=device) if scheme in ("nf4", "codebook") else None
        self.register_buffer("codebook", codebook)
        self.register_buffer("bias", zeros(out_features, dtype=dtype or torch.get_default_dtype()) if bias else None)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        scheme: str = "int4",
        group_size: int | None = None,
        calibration: torch.Tensor | None = None,
        search: str = "absmax",
        codebook: torch.Tensor | None = None,
    ) -> QuantLinear:
        """A layer with `linear`'s weight quantised, and its bias. With `calibration`, inputs of the layer (..., in_features) or their Hessian
        (labkernels.quant.gptq), by GPTQ; else to the nearest number, with scales as `search` says ("absmax" or "mse")."""
        if not isinstance(linear, nn.Linear):
            raise ArgumentError(f"QuantLinear.from_linear: linear is a {type(linear).__name__}; it must be an nn.Linear")
        if calibration is None:
            weight = quantize(linear.weight, scheme, group_size, search, codebook)
        else:
            weight = quantize_gptq(linear.weight, calibration, scheme, group_size, codebook=codebook)
        return cls.from_weight(weight, None if linear.bias is None else linear.bias.detach().clone())

    @classmethod
    def from_weight(cls, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> QuantLinear:
        """A layer with this weight and bias (n,)."""
        n, k = weight.shape
        if bias is not None and tuple(bias.shape) != (n,):
            raise ArgumentError(f"QuantLinear: bias has shape {tuple(bias.shape)}; it must be ({n},), one number a row of the weight")
        layer = cls(k, n, weight.scheme, weight.group_size, device="meta")
        layer.packed, layer.scales, layer.codebook, layer.bias = weight.packed, weight.scales, weight.codebook, bias
        return layer

    @property
    def weight(self) -> QuantizedWeight:
        """The weight, made of the layer's buffers."""
        return QuantizedWeight(self.scheme, (self.out_features, self.in_features), self.packed, self.scales, self.group_size, self.codebook)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in_features) to (..., out_features), of x's dtype."""
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ArgumentError(f"QuantLinear: x has shape {tuple(x.shape)}; it must be (..., in_features = {self.in_features})")
        rows = x.reshape(-1, self.in_features)
        if torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled()):
            import labkernels.torch_extension  # noqa: F401  defines the operator

            parts = self.packed, self.scales, self.codebook, self.scheme, self.group_size, self.out_features, self.in_features
            y = torch.ops.labkernels.quant_matmul(rows, *parts)
        else:
            y = quant_matmul(rows, self.weight)
        y = y.view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        group = f", group_size={self.group_size}" if self.group_size else ""
        return f"in_features={self.in_features}, out_features={self.out_features}, scheme={self.scheme}{group}, bias={self.bias is not None}"

    def _apply(self, fn, recurse: bool = True):
        """Devices change, dtypes do not: what the numbers mean depends on them."""
        kept = {name: self._buffers.pop(name) for name in ("packed", "scales", "codebook")}
        super()._apply(fn, recurse)
        for name, tensor in kept.items():
            moved = None if tensor is None else fn(tensor)
            self._buffers[name] = moved if tensor is None or moved.dtype == tensor.dtype else tensor.to(moved.device)
        return self
