"""The operation `cross_entropy`: the loss of each row of logits, and the gradient. What it is, on what it is judged, and what it costs.

What is judged and measured is one call that gives both, as training needs them: losses (rows,) float32, and the gradient of their sum times
`scale`, of the logits' dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch

from labkernels.loss import problem as problems
from labkernels.loss import reference as references
from labkernels.operation import Op, Peer, Tolerance, Variant


def reference(logits, target, scale=1.0, ignore_index=-100, label_smoothing=0.0, z_loss=0.0):
    return references.cross_entropy(logits, target, scale, ignore_index, label_smoothing, z_loss)


def native(logits, target, scale=1.0, ignore_index=-100, label_smoothing=0.0, z_loss=0.0):
    """PyTorch's losses of float32 logits, and the gradient rounded."""
    losses, gradient = references.cross_entropy(logits.float(), target, scale, ignore_index, label_smoothing, z_loss)
    return losses, gradient.to(logits.dtype)


def decode(result, *, logits, **_):
    """The losses in the dtype of the logits, to be compared in it."""
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], torch.Tensor) and result[0].dtype == torch.float32:
        return result[0].to(logits.dtype), result[1]
    return result


def make_inputs(generator, device, dtype, *, rows, vocab, magnitude=3.0, ignored="none", layout="contiguous", **options) -> dict:
    """Normally distributed logits. `ignored` targets: `none`, `some` (every third row), `all`. Layout `apart` leaves a gap between rows."""
    values = (magnitude * torch.randn((rows, vocab), generator=generator, device=generator.device)).to(device, dtype)
    if layout == "apart":
        values = torch.cat([values, values[:, :5]], 1)[:, :vocab]
    target = torch.randint(0, vocab, (rows,), generator=generator, device=generator.device).to(device)
    ignore_index = options.get("ignore_index", -100)
    if ignored != "none":
        target[:: 3 if ignored == "some" else 1] = ignore_index
    return {"logits": values, "target": target, "scale": 1 / 8, **options}


def tolerance(dtype, *, vocab, magnitude=3.0, **_) -> Tolerance:
    """A fast exponential errs by some units in the last place, and more for a large exponent."""
    epsilon = torch.finfo(torch.float32).eps
    return Tolerance(relative=epsilon * (64 + 8 * magnitude + 2 * vocab**0.5), absolute=epsilon * (8 + magnitude) / 8)


def shape(rows: int, vocab: int, **options) -> dict:
    return {"rows": rows, "vocab": vocab, **options}


@lru_cache(maxsize=16)
def _compiled(shape, dtype):
    torch.compiler.reset()

    def loss(logits, target, scale):
        return torch.nn.functional.cross_entropy(logits.float(), target, reduction="none").mul(scale)

    return torch.compile(loss, dynamic=False)


def _torch_compile(logits, target, scale=1.0, **_):
    leaf = logits.detach().requires_grad_()
    losses = _compiled(logits.shape, logits.dtype)(leaf, target, scale)
    return losses.detach() / scale, torch.autograd.grad(losses.sum(), leaf)[0]


def load_variants() -> Mapping[str, Variant]:
    from labkernels.loss.cross_entropy_variants import VARIANTS

    return VARIANTS


class CrossEntropy(Op):
    """v4 takes everything that v3 takes, but in 16 bits v3 takes 2 to 10% less time (data/measured/h200/cross_entropy.csv)."""

    def pick(self, **inputs) -> Variant:
        cluster = self.variants["v3_cluster"]
        return cluster if inputs["logits"].element_size() == 2 and cluster.accepts(**inputs) is None else super().pick(**inputs)


OP = CrossEntropy(
    name="cross_entropy",
    summary="the cross-entropy of each row of logits, and its gradient",
    load_variants=load_variants,
    reference=reference,
    native=native,
    decode=decode,
    problem=problems.of_logits,
    make_inputs=make_inputs,
    axes=("row", "token"),
    results=("loss", "gradient"),
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    small_shapes=(shape(2, 70, ignored="some"), shape(3, 33, label_smoothing=0.1, z_loss=1e-3)),
    check_shapes=(
        shape(1, 2),
        shape(3, 33, ignored="some"),
        shape(5, 257, label_smoothing=0.1),
        shape(2, 1000, z_loss=1e-3),
        shape(4, 128, magnitude=30.0, label_smoothing=0.2, z_loss=1e-4, ignored="some", ignore_index=7),
        shape(6, 65, layout="apart"),
        shape(2, 2056, ignored="some", label_smoothing=0.05),
    ),
    large_shapes=(shape(100, 32_000), shape(33, 128_256, ignored="some"), shape(3, 262_144, z_loss=1e-4), shape(5, 50_257, label_smoothing=0.1)),
    tolerance=tolerance,
    complete_shape=lambda dtype, *, rows, vocab=128_256: {"rows": rows, "vocab": vocab},
    sweep={"dtype": ["bfloat16"], "rows": [512, 2048]},
    record_sweeps=(
        {"dtype": ["bfloat16"], "vocab": [128_256], "rows": [256, 512, 2048]},
        {"dtype": ["bfloat16", "float32"], "vocab": [32_000], "rows": [2048]},
    ),
    flops=lambda *, rows, vocab, **_: 6 * rows * vocab,
    bytes_moved=lambda dtype, *, rows, vocab, **_: 2 * rows * vocab * dtype.itemsize + 12 * rows,
    peers={"torch": Peer("torch", native), "torch.compile": Peer("torch.compile", _torch_compile, lambda logits, **_: None if logits.is_cuda else "needs a GPU")},
)
