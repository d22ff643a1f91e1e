"""Other people's norms: PyTorch's own, torch.compile's, and, where they are installed, Liger's and FlashInfer's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from labkernels.norm.reference import quantized
from labkernels.operation import Peer


def rms_norm(x, weight=None, eps=1e-5):
    return F.rms_norm(x, x.shape[-1:], None if weight is None else weight.to(x.dtype), eps)


def layer_norm(x, weight=None, bias=None, eps=1e-5):
    weight, bias = (None if given is None else given.to(x.dtype) for given in (weight, bias))
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def add_rms_norm(x, residual, weight=None, bias=None, eps=1e-5):
    total = x + residual if bias is None else x + bias + residual
    return rms_norm(total, weight, eps), total


def rms_norm_quantized(x, weight=None, eps=1e-5, dtype=torch.float8_e4m3fn, residual=None, bias=None):
    if residual is None:
        return quantized(rms_norm(x, weight, eps).float(), dtype)
    y, total = add_rms_norm(x, residual, weight, bias, eps)
    return *quantized(y.float(), dtype), total


def rms_norm_backward(grad_out, x, weight=None, eps=1e-5, grad_sum=None, forward: Callable = rms_norm):
    """PyTorch's gradients; the forward pass runs first, every time."""
    leaves = _leaves(x, weight)
    with torch.enable_grad():
        y = forward(*leaves, eps=eps)
    dx, dweight = torch.autograd.grad(y, leaves, grad_out)
    return dx if grad_sum is None else dx + grad_sum, dweight


def layer_norm_backward(grad_out, x, weight=None, eps=1e-5):
    leaves = [*_leaves(x, weight), torch.zeros_like(x[0] if weight is None else weight).requires_grad_()]
    with torch.enable_grad():
        y = layer_norm(*leaves, eps=eps)
    return torch.autograd.grad(y, leaves, grad_out)


def _leaves(x, weight) -> list[torch.Tensor]:
    weight = torch.ones(x.shape[1], dtype=x.dtype, device=x.device) if weight is None else weight
    return [tensor.detach().requires_grad_() for tensor in (x, weight)]


@lru_cache(maxsize=64)
def _compiled(fn: Callable, shape: torch.Size, dtype: torch.dtype) -> Callable:
    torch.compiler.reset()
    return torch.compile(fn, dynamic=False)


def compiled(fn: Callable) -> Peer:
    """torch.compile of `fn`, once for each shape."""
    return Peer("torch.compile", lambda x, *given, **options: _compiled(fn, x.shape, x.dtype)(x, *given, **options), _on_a_gpu)


def backward(name: str, forward: Callable, with_bias: bool = False, compile: bool = False, accepts: Callable | None = None) -> Peer:
    """The backward pass that autograd makes of `forward`, which runs once for each set of inputs."""
    graphs: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def fn(grad_out, x, weight=None, eps=1e-5, grad_sum=None):
        if grad_out not in graphs:
            leaves = _leaves(x, weight)
            leaves += [torch.zeros_like(leaves[1]).requires_grad_()] if with_bias else []
            with torch.enable_grad():
                graphs[grad_out] = (_compiled(forward, x.shape, x.dtype) if compile else forward)(*leaves, eps=eps), leaves
        y, leaves = graphs[grad_out]
        dx, *others = torch.autograd.grad(y, leaves, grad_out, retain_graph=True)
        return dx if grad_sum is None else dx + grad_sum, *others

    return Peer(name, fn, accepts or (_on_a_gpu if compile else lambda **inputs: None))


def _on_a_gpu(x, *_, **__) -> str | None:
    return None if x.is_cuda else "needs a GPU"


def _whole(package: str, **inputs) -> str | None:
    """Why a package with kernels of its own cannot take these inputs, or None."""
    name = package.partition(".")[0]
    if importlib.util.find_spec(name) is None or importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    if not inputs["x"].is_cuda:
        return "needs a GPU"
    if inputs.get("grad_sum") is not None or inputs.get("weight") is None:
        return f"{name} is measured with a weight, and without grad_sum"
    if not all(value.is_contiguous() for value in inputs.values() if isinstance(value, torch.Tensor)):
        return "takes contiguous tensors"
    return None


def _no_bias(package: str, bias=None, **inputs) -> str | None:
    return f"{package} adds no bias" if bias is not None else _whole(package, **inputs)


def _with_bias(bias=None, **inputs) -> str | None:
    return "liger_kernel is measured with a bias" if bias is None else _whole("liger_kernel.ops.layer_norm", **inputs)


def _of_16_bits(**inputs) -> str | None:
    if refusal := _whole("flashinfer", **inputs):
        return refusal
    return None if inputs["x"].itemsize == 2 and inputs["weight"].dtype == inputs["x"].dtype else "takes elements of 16 bits"


def liger_rms_norm(x, weight=None, eps=1e-5):
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False)


def liger_layer_norm(x, weight=None, bias=None, eps=1e-5):
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction

    return LigerLayerNormFunction.apply(x, weight, bias, eps)


def liger_add_rms_norm(x, residual, weight=None, bias=None, eps=1e-5):
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

    return LigerFusedAddRMSNormFunction.apply(x, residual, weight, eps, 0.0, "llama", False)


def flashinfer_rms_norm(x, weight=None, eps=1e-5):
    """Its CUDA kernel, or its kernel in CuTe's language where nvidia-cutlass-dsl is installed and FLASHINFER_USE_CUDA_NORM is not 1."""
    import flashinfer

    return flashinfer.norm.rmsnorm(x, weight, eps)


def _table(*peers: Peer) -> dict[str, Peer]:
    return {peer.name: peer for peer in peers}


RMS_NORM = _table(
    Peer("torch", rms_norm),
    compiled(rms_norm),
    Peer("liger", liger_rms_norm, partial(_whole, "liger_kernel.ops.rms_norm")),
    Peer("flashinfer", flashinfer_rms_norm, _of_16_bits),
)
LAYER_NORM = _table(
    Peer("torch", layer_norm),
    compiled(layer_norm),
    Peer("liger", liger_layer_norm, _with_bias),
)
ADD_RMS_NORM = _table(  # FlashInfer's writes over its inputs, and has no result that could be checked against them
    Peer("torch", add_rms_norm),
    compiled(add_rms_norm),
    Peer("liger", liger_add_rms_norm, partial(_no_bias, "liger_kernel.ops.fused_add_rms_norm")),
)
RMS_NORM_QUANTIZED = _table(Peer("torch", rms_norm_quantized), compiled(rms_norm_quantized))
RMS_NORM_BACKWARD = _table(
    backward("torch", rms_norm),
    backward("torch.compile", rms_norm, compile=True),
    backward("liger", liger_rms_norm, accepts=partial(_whole, "liger_kernel.ops.rms_norm")),
)
LAYER_NORM_BACKWARD = _table(
    backward("torch", layer_norm, True),
    backward("torch.compile", layer_norm, True, compile=True),
    backward("liger", liger_layer_norm, True, accepts=partial(_whole, "liger_kernel.ops.layer_norm")),
)
