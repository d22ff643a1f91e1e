"""Cross-entropy and its gradient in plain PyTorch, in the precision of the inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def losses_of(logits, target, ignore_index=-100, label_smoothing=0.0, z_loss=0.0) -> torch.Tensor:
    """The loss of each row, (rows,): F.cross_entropy's, and z_loss times the square of the logarithm of softmax's sum."""
    losses = F.cross_entropy(logits, target, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none")
    if not z_loss:
        return losses
    return losses + z_loss * torch.logsumexp(logits, -1).square().masked_fill(target == ignore_index, 0.0)


def reduced(losses: torch.Tensor, target: torch.Tensor, ignore_index: int, reduction: str) -> torch.Tensor:
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / (target != ignore_index).sum()


def cross_entropy(logits, target, scale=1.0, ignore_index=-100, label_smoothing=0.0, z_loss=0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses (rows,), and the gradient of their sum times scale, (rows, vocab)."""
    logits = logits.detach().requires_grad_()
    with torch.enable_grad():
        losses = losses_of(logits, target, ignore_index, label_smoothing, z_loss)
        (gradient,) = torch.autograd.grad((losses * scale).sum(), logits)
    return losses.detach(), gradient


def linear_cross_entropy(x, weight, target, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, reduction="mean"):
    """The loss, and the gradients of x and weight. The logits are of the precision of x."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    with torch.enable_grad():
        losses = losses_of(x @ weight.t(), target, ignore_index, label_smoothing, z_loss)
        loss = reduced(losses, target, ignore_index, reduction)
        grad_x, grad_weight = torch.autograd.grad(loss, (x, weight))
    return loss.detach(), grad_x, grad_weight
