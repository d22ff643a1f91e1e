"""The feed-forward network by its definition, in plain PyTorch: every other implementation is compared with this one in float64."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

ACTIVATIONS = {"gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "swiglu": None}
_NUMBERS = {"gelu": 2, "gelu_tanh": 3, "swiglu": 4}  # `enum class Activation` of include/epilogue.cuh; swiglu is silu and a product


def is_gated(activation: str) -> bool:
    return activation == "swiglu"


def activation_number(activation: str) -> int:
    """The template argument ACTIVATION of the kernels."""
    return _NUMBERS[activation]


def activate(pre: torch.Tensor, activation: str) -> torch.Tensor:
    """h (tokens, ffn) from what the first product gave: (tokens, ffn), or for swiglu (tokens, 2 ffn), the gates before the ups."""
    if is_gated(activation):
        gate, up = pre.chunk(2, dim=-1)
        return F.silu(gate) * up
    return ACTIVATIONS[activation](pre)


def reference(x, w1, w2, b1=None, b2=None, activation="gelu") -> torch.Tensor:
    """act(x w1^T + b1) w2^T + b2, in the precision of its inputs. Shapes as in `labkernels.ffn.ffn`."""
    pre = x @ w1.t()
    y = activate(pre if b1 is None else pre + b1, activation) @ w2.t()
    return y if b2 is None else y + b2


def backward_reference(grad_out, x, pre, w1, w2, activation="gelu", bias=False) -> tuple[torch.Tensor, ...]:
    """(dx, dw1, dw2, db1, db2), the last two without elements unless `bias`. Derivatives are written out, nothing is left to autograd."""
    dh = grad_out @ w2
    h, dpre = activate(pre, activation), gradient(dh, pre, activation)
    none = grad_out.new_empty(0)
    return dpre @ w1, dpre.t() @ x, grad_out.t() @ h, dpre.sum(0) if bias else none, grad_out.sum(0) if bias else none


def gradient(dh: torch.Tensor, pre: torch.Tensor, activation: str) -> torch.Tensor:
    """The gradient of `pre` from that of h = activate(pre)."""
    if is_gated(activation):
        gate, up = pre.chunk(2, dim=-1)
        s = torch.sigmoid(gate)
        return torch.cat([dh * up * s * (1 + gate * (1 - s)), dh * gate * s], dim=-1)
    if activation == "gelu_tanh":
        root = (2 / torch.pi) ** 0.5
        t = torch.tanh(root * (pre + 0.044715 * pre**3))
        return dh * (0.5 * (1 + t) + 0.5 * pre * (1 - t * t) * root * (1 + 3 * 0.044715 * pre**2))
    return dh * (0.5 * (1 + torch.erf(pre * 0.5**0.5)) + pre * torch.exp(-0.5 * pre**2) * (2 * torch.pi) ** -0.5)


def ready(*matrices: torch.Tensor) -> str | None:
    """Why the copy engine cannot read one of these matrices by rows, or None."""
    for matrix in matrices:
        row = matrix.stride(0) * matrix.element_size() if matrix.shape[0] > 1 else 16
        if not matrix.numel() or matrix.shape[1] % (16 // matrix.element_size()) or row % 16 or matrix.data_ptr() % 16:
            return "takes matrices whose rows lie on 16 bytes and are as long as a multiple of it"
    return None
