"""`torch.ops.labkernels.cross_entropy` and `.linear_cross_entropy`: the loss, and with it the gradients that the backward pass will want.

    cross_entropy(logits, target, ignore_index, label_smoothing, z_loss, reduction, with_gradient) -> (loss, gradient, factor)
    linear_cross_entropy(x, weight, target, ... , chunk_tokens, with_dx, with_dweight) -> (loss, dx, dweight, factor)
    linear_cross_entropy_backward(grad_losses, x, weight, target, ...) -> (dx, dweight)       for reduction "none", computes the logits again

Gradients that are not wanted are empty. `factor` is what they are still to be multiplied by, beside the gradient of the loss.
"""

from __future__ import annotations

import torch

from labkernels.errors import ArgumentError
from labkernels.loss import problem as problems
from labkernels.loss.cross_entropy_variants import scale_in_place
from labkernels.loss.linear_cross_entropy_variants import fastest, reduced, scales, worked_out
from labkernels.torch_extension.operators import LIBRARY, define
from labkernels.torch_extension.transforms import second_gradient_refusal

_OPTIONS = 'int ignore_index=-100, float label_smoothing=0.0, float z_loss=0.0, str reduction="mean"'
ops = torch.ops.labkernels


def call_cross_entropy(logits, target, ignore_index, label_smoothing, z_loss, reduction) -> torch.Tensor:
    _expect("cross_entropy", problems.of_logits(logits, target, 1.0, ignore_index, label_smoothing, z_loss, reduction))
    options = (ignore_index, float(label_smoothing), float(z_loss), reduction)
    return ops.cross_entropy(logits, target, *options, torch.is_grad_enabled() and logits.requires_grad)[0]


def call_linear_cross_entropy(x, weight, target, ignore_index, label_smoothing, z_loss, reduction, chunk_tokens) -> torch.Tensor:
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    _expect("linear_cross_entropy", problems.of_linear(x, weight, target, ignore_index, label_smoothing, z_loss, reduction, chunk_tokens))
    options = (ignore_index, float(label_smoothing), float(z_loss), reduction, chunk_tokens)
    wanted = [torch.is_grad_enabled() and tensor.requires_grad for tensor in (x, weight)]
    loss = ops.linear_cross_entropy(x.reshape(-1, x.shape[-1]), weight, target.reshape(-1), *options, *wanted)[0]
    return loss.view(target.shape) if reduction == "none" else loss


def _expect(name: str, problem: str | None) -> None:
    if problem is not None:
        raise ArgumentError(f"{name}: {problem}")


def cross_entropy(logits, target, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, reduction="mean", with_gradient=False):
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    scale, factor = scales(logits, target, ignore_index, reduction)
    options = (ignore_index, label_smoothing, z_loss)
    losses, gradient = fastest(logits)(logits, target, scale, *options, with_gradient=with_gradient)
    gradient = logits.new_empty(0) if gradient is None else gradient
    return reduced(losses, target, ignore_index, reduction), gradient, factor.clone()


def cross_entropy_fake(logits, target, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, reduction="mean", with_gradient=False):
    loss, factor = _loss_fake(logits, target, reduction)
    return loss, logits.new_empty(logits.shape if with_gradient else 0), factor


def cross_entropy_saves(ctx, inputs, output) -> None:
    _, gradient, factor = output
    ctx.reduction = inputs[5]
    ctx.mark_non_differentiable(gradient, factor)
    ctx.save_for_backward(gradient, factor)


def cross_entropy_gradient(ctx, grad, *_):
    _expect_no_second("cross_entropy")
    gradient, factor = ctx.saved_tensors
    if ctx.reduction == "none":
        return (gradient * grad[:, None]).to(gradient.dtype), *[None] * 6
    return _scaled(gradient, grad.float().reshape(1) * factor), *[None] * 6


def linear_cross_entropy(
    x, weight, target, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, reduction="mean", chunk_tokens=None, with_dx=False, with_dweight=False
):  # fmt: skip
    scale, factor = scales(x, target, ignore_index, reduction)
    wanted = (with_dx and reduction != "none", with_dweight and reduction != "none")
    options = (ignore_index, label_smoothing, z_loss, chunk_tokens)
    losses, dx, dweight = worked_out(x, weight, target, scale, *options, gradients=wanted)
    gradients = [x.new_empty(0) if gradient is None else gradient for gradient in (dx, dweight)]
    return reduced(losses, target, ignore_index, reduction), *gradients, factor.clone()


def linear_cross_entropy_fake(
    x, weight, target, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, reduction="mean", chunk_tokens=None, with_dx=False, with_dweight=False
):  # fmt: skip
    loss, factor = _loss_fake(x, target, reduction)
    made = reduction != "none"
    return loss, x.new_empty(x.shape if with_dx and made else 0), x.new_empty(weight.shape if with_dweight and made else 0), factor


def linear_cross_entropy_saves(ctx, inputs, output) -> None:
    x, weight, target, *ctx.options = inputs
    _, dx, dweight, factor = output
    ctx.mark_non_differentiable(dx, dweight, factor)
    ctx.save_for_backward(*((x, weight, target) if ctx.options[3] == "none" else (dx, dweight, factor)))


def linear_cross_entropy_gradient(ctx, grad, *_):
    ignore_index, label_smoothing, z_loss, reduction, chunk_tokens, with_dx, with_dweight = ctx.options
    if reduction == "none":
        options = (ignore_index, label_smoothing, z_loss, chunk_tokens, with_dx, with_dweight)
        dx, dweight = ops.linear_cross_entropy_backward(grad.float(), *ctx.saved_tensors, *options)
    else:
        _expect_no_second("linear_cross_entropy")
        *gradients, factor = ctx.saved_tensors
        dx, dweight = (_scaled(gradient, grad.float().reshape(1) * factor) for gradient in gradients)
    return dx if with_dx else None, dweight if with_dweight else None, *[None] * 8


def _expect_no_second(name: str) -> None:
    """The gradient is worked out in the forward pass, and remembers nothing of what it depends on."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise ArgumentError(f"{second_gradient_refusal(name)} (create_graph=True asks for them)")


def linear_cross_entropy_backward(
    grad_losses, x, weight, target, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, chunk_tokens=None, with_dx=True, with_dweight=True
):  # fmt: skip
    options = (ignore_index, label_smoothing, z_loss, chunk_tokens)
    _, dx, dweight = worked_out(x, weight, target, grad_losses.contiguous(), *options, gradients=(with_dx, with_dweight))
    return tuple(x.new_empty(0) if gradient is None else gradient for gradient in (dx, dweight))


def linear_cross_entropy_backward_fake(
    grad_losses, x, weight, target, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, chunk_tokens=None, with_dx=True, with_dweight=True
):  # fmt: skip
    return x.new_empty(x.shape if with_dx else 0), x.new_empty(weight.shape if with_dweight else 0)


def _scaled(gradient, factor) -> torch.Tensor:
    """gradient times factor: in its place, where it is memory and not a symbol of a graph, and so to be had once."""
    if type(gradient) is not torch.Tensor or torch.compiler.is_compiling():
        return (gradient * factor).to(gradient.dtype)
    scale_in_place(gradient, factor)
    torch.autograd.graph.increment_version(gradient)
    return gradient


def _loss_fake(beside, target, reduction):
    like = {"dtype": torch.float32, "device": beside.device}
    return torch.empty(target.shape if reduction == "none" else (), **like), torch.empty(1, **like)


_SCHEMAS = {
    "cross_entropy": f"(Tensor logits, Tensor target, {_OPTIONS}, bool with_gradient=False) -> (Tensor loss, Tensor gradient, Tensor factor)",
    "linear_cross_entropy": f"(Tensor x, Tensor weight, Tensor target, {_OPTIONS}, int? chunk_tokens=None, bool with_dx=False, "
    "bool with_dweight=False) -> (Tensor loss, Tensor dx, Tensor dweight, Tensor factor)",
    "linear_cross_entropy_backward": "(Tensor grad_losses, Tensor x, Tensor weight, Tensor target, int ignore_index=-100, float label_smoothing=0.0, "
    "float z_loss=0.0, int? chunk_tokens=None, bool with_dx=True, bool with_dweight=True) -> (Tensor dx, Tensor dweight)",
}
for _name, _schema in _SCHEMAS.items():
    define(_name, _schema, globals()[_name], globals()[f"{_name}_fake"])
for _name in ("cross_entropy", "linear_cross_entropy"):
    torch.library.register_autograd(
        f"labkernels::{_name}", globals()[f"{_name}_gradient"], setup_context=globals()[f"{_name}_saves"], lib=LIBRARY
    )
