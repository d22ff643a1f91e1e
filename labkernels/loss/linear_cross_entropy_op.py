"""The operation `linear_cross_entropy`: the loss of a linear layer's logits, and the gradients of its input and its weight.

What is judged and measured is a forward and a backward pass together. FLOPs are those of three matmuls: the logits, and the two gradients.
The `peak_mb` that a benchmark records counts the gradients themselves, which are 0.56 GB at 8192 x 2048 x 128256 in bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.loss import problem as problems
from labkernels.loss import reference as references
from labkernels.loss.peers import PEERS
from labkernels.operation import Op, Tolerance, Variant


def reference(x, weight, target, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, reduction="mean"):
    return references.linear_cross_entropy(x, weight, target, ignore_index, label_smoothing, z_loss, reduction)


def decode(result, *, x, **_):
    """The loss in the dtype of x, to be compared in it."""
    if isinstance(result, tuple) and len(result) == 3 and isinstance(result[0], torch.Tensor) and result[0].dtype == torch.float32:
        return result[0].to(x.dtype), *result[1:]
    return result


def make_inputs(generator, device, dtype, *, tokens, hidden, vocab, ignored="none", **options) -> dict:
    """x normally distributed, weight so that logits are, too. `ignored` targets: `none`, or `some`, every third one."""

    def normal(*size, scale=1.0):
        return (scale * torch.randn(size, generator=generator, device=generator.device)).to(device, dtype)

    target = torch.randint(0, vocab, (tokens,), generator=generator, device=generator.device).to(device)
    if ignored == "some":
        target[::3] = options.get("ignore_index", -100)
    return {"x": normal(tokens, hidden), "weight": normal(vocab, hidden, scale=hidden**-0.5), "target": target, **options}


def tolerance(dtype, *, tokens, hidden, vocab, reduction="mean", **_) -> Tolerance:
    """Sums of `hidden`, `vocab` and `tokens` products; a gradient of a mean is as small as 1 / tokens."""
    epsilon = torch.finfo(torch.float32).eps
    of_gradient = epsilon * (8 + hidden**0.5 + tokens**0.5) / (tokens if reduction == "mean" else 1)
    return Tolerance(relative=epsilon * (64 + 4 * (hidden + vocab + tokens) ** 0.5), absolute=of_gradient)


def shape(tokens: int, hidden: int, vocab: int, **options) -> dict:
    return {"tokens": tokens, "hidden": hidden, "vocab": vocab, **options}


def bytes_moved(dtype, *, tokens, hidden, vocab, **_) -> float:
    """x and weight read once, their gradients written once: what a kernel that keeps all logits on the chip would move."""
    return 2 * dtype.itemsize * (tokens + vocab) * hidden


def load_variants() -> Mapping[str, Variant]:
    from labkernels.loss.linear_cross_entropy_variants import VARIANTS

    return VARIANTS


OP = Op(
    name="linear_cross_entropy",
    summary="the cross-entropy of a linear layer's logits, and the gradients of x and weight",
    load_variants=load_variants,
    reference=reference,
    native=reference,
    decode=decode,
    problem=problems.of_linear,
    make_inputs=make_inputs,
    axes=("row", "col"),
    results=("loss", "dx", "dweight"),
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    deterministic=False,  # cuBLAS may split a sum
    small_shapes=(shape(5, 16, 40), shape(3, 8, 33, ignored="some", label_smoothing=0.1)),
    check_shapes=(
        shape(1, 3, 5),
        shape(33, 16, 70),
        shape(300, 24, 100, ignored="some"),  # two chunks
        shape(40, 32, 257, label_smoothing=0.1, z_loss=1e-3),
        shape(20, 8, 64, reduction="sum", ignored="some", ignore_index=3),
    ),
    large_shapes=(shape(2048, 512, 32_000), shape(1000, 256, 128_256, ignored="some", z_loss=1e-4)),
    tolerance=tolerance,
    element_times=4.0,  # gradients are sums of many rounded numbers: the worst of few elements is a matter of luck
    complete_shape=lambda dtype, *, tokens, hidden=2048, vocab=128_256: {"tokens": tokens, "hidden": hidden, "vocab": vocab},
    sweep={"dtype": ["bfloat16"], "hidden": [2048], "vocab": [128_256], "tokens": [1024, 8192]},
    record_sweeps=(
        {"dtype": ["bfloat16"], "hidden": [2048], "vocab": [128_256], "tokens": [1024, 8192]},
        {"dtype": ["bfloat16"], "hidden": [4096], "vocab": [32_000], "tokens": [8192]},
    ),
    flops=lambda *, tokens, hidden, vocab, **_: 6 * tokens * hidden * vocab,
    bytes_moved=bytes_moved,
    peers=PEERS,
)
