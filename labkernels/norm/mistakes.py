"""The classic mistakes of norms: what each computes, so that a wrong result can be recognised and named."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from labkernels.norm import reference


def _lanes(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """For each element the sum of `values` over its own lane's columns: every 32nd."""
    lane = torch.arange(x.shape[1], device=x.device) % 32
    return values.new_zeros(x.shape[0], 32).index_add_(1, lane, values)[:, lane]


def of_rms_norm(x, weight, eps) -> Iterator[tuple[str, torch.Tensor]]:
    weight = torch.ones_like(x[0]) if weight is None else weight
    squares, cols = (x * x).sum(-1, keepdim=True), x.shape[1]
    yield "the norm without the weight", reference.rms_norm(x, None, eps)
    yield "x / sqrt(sum of squares + eps): the mean divides the sum by the number of columns", x * torch.rsqrt(squares + eps) * weight
    yield "x / (mean of squares + eps): the square root is missing", x / (squares / cols + eps) * weight
    yield "x * sqrt(mean of squares + eps): it must divide", x * (squares / cols + eps).sqrt() * weight
    yield "x / (sqrt(mean of squares) + eps): eps belongs under the root", x / ((squares / cols).sqrt() + eps) * weight
    yield "LayerNorm: RMSNorm does not subtract the mean", reference.layer_norm(x, weight, None, eps)
    yield "divided by each lane's own sum: the 32 lanes have not met", x * torch.rsqrt(_lanes(x, x * x) / cols + eps) * weight
    if x.shape[0] > 1:
        yield "the norm of each column instead of each row", x * torch.rsqrt((x * x).mean(0) + eps) * weight
    for width in (32, 64, 128, 256, 512, 1024):
        if width < cols:
            part = (x[:, :width] ** 2).sum(-1, keepdim=True)
            yield f"divided by the squares of the first {width} of {cols} columns only", x * torch.rsqrt(part / cols + eps) * weight


def of_layer_norm(x, weight, bias, eps) -> Iterator[tuple[str, torch.Tensor]]:
    cols = x.shape[1]
    centred = x - x.mean(-1, keepdim=True)
    scaled = lambda values: (values if weight is None else values * weight) + (0 if bias is None else bias)
    variance = (centred**2).mean(-1, keepdim=True)
    yield "the norm without the bias", reference.layer_norm(x, weight, None, eps)
    yield "the norm without weight and bias", reference.layer_norm(x, None, None, eps)
    if cols > 1:
        yield "with a variance divided by cols - 1; LayerNorm divides by cols", scaled(centred * torch.rsqrt(variance * cols / (cols - 1) + eps))
    yield "RMSNorm: LayerNorm subtracts the mean first", scaled(reference.rms_norm(x, None, eps))
    yield "x / sqrt(variance + eps): the mean is not subtracted from x itself", scaled(x * torch.rsqrt(variance + eps))
    squares = (x * x).mean(-1, keepdim=True)
    yield "(x - mean) / sqrt(mean of squares + eps): the squares are those of x - mean", scaled(centred * torch.rsqrt(squares + eps))
    if x.shape[0] > 1:
        other = x - x.mean(0)
        yield "the norm of each column instead of each row", scaled(other * torch.rsqrt((other**2).mean(0) + eps))


def of_gradients(grad_out, x, weight, eps, added, centred: bool) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Pairs of a description and the wrong gradients by name."""
    row = x - x.mean(-1, keepdim=True) if centred else x
    rstd = torch.rsqrt((row * row).mean(-1, keepdim=True) + eps)
    normal, g = row * rstd, grad_out if weight is None else grad_out * weight
    more = 0 if added is None else added
    mean, along = g.mean(-1, keepdim=True) if centred else 0, (g * normal).mean(-1, keepdim=True)
    dx, dweight = rstd * (g - mean - normal * along) + more, (grad_out * normal).sum(0)
    yield "rstd * gradient * weight: a row's own length depends on x too", {"dx": rstd * g + more}
    if centred:
        yield "the gradient without mean(g): the mean depends on x too", {"dx": rstd * (g - normal * along) + more}
        yield "the gradient without n * mean(g * n): the variance depends on x too", {"dx": rstd * (g - mean) + more}
    if weight is not None:
        plain = grad_out - (grad_out.mean(-1, keepdim=True) if centred else 0) - normal * (grad_out * normal).mean(-1, keepdim=True)
        yield "the gradient without the weight", {"dx": rstd * plain + more}
        yield "the sum of gradient * weight * n: the weight is not a factor of its own gradient", {"dweight": (g * normal).sum(0)}
    yield "the gradient without the factor rstd", {"dx": g - mean - normal * along + more}
    if added is not None:
        yield "the gradient without grad_sum", {"dx": dx - added}
    yield "the sum of gradient * x: x must be normalised", {"dweight": (grad_out * x).sum(0)}
    yield "the sum of the gradient alone, which is that of the bias", {"dweight": grad_out.sum(0)}
    yield "that of the weight", {"dbias": dweight}
    if x.shape[0] > 1:
        yield "what the last row adds: the rows' shares have not been summed", {"dweight": (grad_out * normal)[-1], "dbias": grad_out[-1]}
        yield "the mean over the rows where the sum is wanted", {"dweight": dweight / x.shape[0], "dbias": grad_out.mean(0)}
