"""GPTQ for a whole model: block after block, each product with the inputs that it will really meet.

    quantize_calibrated(model, samples, "int4", group_size=128)       # samples (n, seq) int64, text like what the model will read

Notable:
- inputs come from the model as quantised so far, so that a layer makes good what those before it have done wrong, too
- within a block the products go one after the other: out_proj is calibrated behind the quantised qkv_proj, and so on ("true sequential")
- of inputs only their Hessian is kept, k x k; of the model one block's activations at a time
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from tqdm import tqdm

from labkernels.errors import ArgumentError
from labkernels.llm.model import Block, Context, Transformer
from labkernels.llm.quantisation.quantized import QUANTISED, _replace, check_scheme
from labkernels.nn import QuantLinear
from labkernels.quant import gptq, quantize
from labkernels.quant.formats import QuantizedWeight

Stream = tuple[torch.Tensor, torch.Tensor | None]  # what a block takes: x and the residual, (batch, seq, embed_dim)


class _Seen(Exception):
    """The input that was wanted is there; what the block would compute behind it is not needed."""


@torch.no_grad()
def quantize_calibrated(
    model: Transformer, samples: torch.Tensor, scheme: str = "int4", group_size: int | None = None, *, search: str = "mse", damping: float = 0.01,
    batch_size: int = 8, progress: bool = False,
) -> Transformer:  # fmt: skip
    """`model` with the products of its blocks quantised by GPTQ, in place. samples (n, seq) int64: text to calibrate with, 100,000 tokens or more.

    The other arguments are those of quantize_gptq. `batch_size` samples go through a block at a time. Raises ArgumentError.
    """
    check_scheme(scheme, group_size)
    if samples.dim() != 2 or samples.dtype != torch.int64 or samples.numel() == 0:
        raise ArgumentError(f"quantize_calibrated: samples is {samples.dtype} of shape {tuple(samples.shape)}; it must be int64 (n, seq), and not empty")
    plain_products(model, "quantize_calibrated")
    before, model.kernels = model.kernels, "torch"  # this package's fused FFN never hands its second product an input
    try:
        device = model.embedding.weight.device
        context = Context(model.kernels, model.angles[: samples.shape[1]], None, None)
        streams: list[Stream] = [(model.embedding(batch.to(device)), None) for batch in samples.split(batch_size)]
        for block in tqdm(model.blocks, desc="GPTQ", leave=False, disable=None if progress else True):
            made = {}
            for name, layer in _products(block):
                weight = gptq.quantize_gptq(layer.weight, _hessian(block, layer, streams, context), scheme, group_size, search, damping=damping)
                layer.weight.copy_(weight.dequantize(layer.weight.dtype))
                made[name] = weight
            streams = [block(x, residual, context) for x, residual in streams]
            for name, weight in made.items():
                _replace(block, name, QuantLinear.from_weight(weight))
    finally:
        model.kernels = before
    return model


def quantize_searched(model: Transformer, scheme: str, group_size: int | None = None) -> Transformer:
    """`model` with the products of its blocks rounded to the nearest number, by the scales whose error is least, in place. Raises ArgumentError."""
    check_scheme(scheme, group_size)
    return _each_product(model, lambda layer: quantize(layer.weight, scheme, group_size, "mse"))


def plain_products(model: Transformer, who: str) -> None:
    """Raises ArgumentError if the model is quantised already."""
    if any(isinstance(layer, QuantLinear) for layer in model.modules()):
        raise ArgumentError(f"{who}: the model is quantised already; give the one that it was made of")


def _each_product(model: Transformer, how: Callable[[nn.Linear], QuantizedWeight]) -> Transformer:
    plain_products(model, "quantize_searched")
    for block in model.blocks:
        for name, layer in _products(block):
            _replace(block, name, QuantLinear.from_weight(how(layer)))
    return model


def _products(block: Block) -> Iterator[tuple[str, nn.Linear]]:
    """In the order in which they are computed, which is that of their registration."""
    yield from [(name, layer) for name, layer in block.named_modules() if name.endswith(QUANTISED)]


def _hessian(block: Block, layer: nn.Linear, streams: list[Stream], context: Context) -> torch.Tensor:
    """X^T X / tokens (k, k), float32, over the layer's inputs X of all streams."""
    total, tokens = torch.zeros(layer.in_features, layer.in_features, device=layer.weight.device), 0

    def look(_, arguments) -> None:
        nonlocal tokens
        count = arguments[0].numel() // layer.in_features
        total.add_(gptq.hessian(arguments[0]), alpha=count)
        tokens += count
        raise _Seen

    hook = layer.register_forward_pre_hook(look)
    try:
        for x, residual in streams:
            try:
                block(x, residual, context)
            except _Seen:
                pass
    finally:
        hook.remove()
    return (total + total.t()) / (2 * tokens)  # symmetric to the last bit: quantize_gptq tells a Hessian from inputs by that
