"""Linear and cross-entropy by PyTorch, by its compiler, and by Liger-Kernel: a forward and a backward pass each."""

from __future__ import annotations

import importlib.util
from functools import lru_cache

import torch
import torch.nn.functional as F

from labkernels.loss import reference as references
from labkernels.operation import Peer


def _gradients(loss_of, x, weight, target):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    with torch.enable_grad():
        loss = loss_of(x, weight, target)
        return loss.detach(), *torch.autograd.grad(loss, (x, weight))


def eager(x, weight, target, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, reduction="mean"):
    """Logits in the dtype of x."""
    return references.linear_cross_entropy(x, weight, target, ignore_index, label_smoothing, z_loss, reduction)


def _float32_logits(x, weight, target):
    return F.cross_entropy(F.linear(x, weight).float(), target).to(x.dtype)


def eager_float32(x, weight, target):
    """Logits made float32 before the softmax, as most training code does."""
    return _gradients(_float32_logits, x, weight, target)


@lru_cache(maxsize=8)
def _compiled(*case):
    torch.compiler.reset()
    return torch.compile(_float32_logits, dynamic=False)


def torch_compile(x, weight, target):
    return _gradients(_compiled(x.shape, weight.shape, x.dtype), x, weight, target)


def liger(x, weight, target, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, reduction="mean"):
    """Liger-Kernel's fused linear cross-entropy."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    layer = LigerFusedLinearCrossEntropyLoss(ignore_index=ignore_index, label_smoothing=label_smoothing, lse_square_scale=z_loss, reduction=reduction)
    loss, dx, dweight = _gradients(lambda x, weight, target: layer(weight, x, target), x, weight, target)
    return loss.to(x.dtype), dx, dweight


def _on_gpu(x, *_, **__) -> str | None:
    return None if x.is_cuda else "needs a GPU"


def _plain(x, weight, target, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, reduction="mean") -> str | None:
    if ignore_index != -100 or label_smoothing or z_loss or reduction != "mean":
        return "is measured without options"
    return _on_gpu(x)


def _with_liger(x, *args, **options) -> str | None:
    return "liger_kernel is not installed" if importlib.util.find_spec("liger_kernel") is None else _on_gpu(x)


PEERS = {
    peer.name: peer
    for peer in (
        Peer("eager", eager, _on_gpu),
        Peer("eager_float32", eager_float32, _plain),
        Peer("torch.compile", torch_compile, _plain),
        Peer("liger", liger, _with_liger),
    )
}
