"""RMSNorm of a sum, written in fp8 for the product that follows, as a torch operator with gradients: what is between is never there in 16 bits.

    labkernels::fp8_add_rms_norm(x, residual, weight, eps, row, fresh, keep) -> (carrier, sum, values, turned)
"""

from __future__ import annotations

from pathlib import Path

import torch

from labkernels.cuda.variants import ceil_div, kernel
from labkernels.llm.model import RMSNorm
from labkernels.llm.training.fp8_cast import E4M3
from labkernels.llm.training.fp8_delayed import Cast, settle
from labkernels.llm.training.fp8_scales import LARGEST, SCALE, Sites
from labkernels.torch_extension.operators import LIBRARY, define

FILE = Path(__file__).with_name("fp8_norm.cu")
ROWS, VECTORS = 32, (1, 2, 4, 6, 8)  # of a block; of 8 elements, a lane
MOST_COLUMNS = 256 * VECTORS[-1]
SCHEMA = "(Tensor x, Tensor residual, Tensor weight, float eps, Tensor row, Tensor fresh, bool keep) -> (Tensor carrier, Tensor sum, Tensor values, Tensor turned)"


def fp8_add_rms_norm(x, residual, weight, eps, row, fresh, keep):
    x, residual = x.contiguous(), residual.contiguous()
    cols = x.shape[-1]
    rows = x.numel() // cols
    if fresh:
        settle(row, E4M3, (torch.nn.functional.rms_norm(x + residual, (cols,), weight, eps),))
    carrier, total, values, turned = fp8_add_rms_norm_fake(x, residual, weight, eps, row, fresh, keep)
    vectors = next(each for each in VECTORS if 256 * each >= cols)
    outputs = (total, values.view(torch.uint8), turned.view(torch.uint8) if keep else None, row[LARGEST] if keep else None)
    norm = kernel(FILE, "fp8_add_rms_norm", x.dtype, vectors)
    norm(ceil_div(rows, ROWS), 256, (x, residual, weight, row[SCALE], *outputs, rows, cols, eps), ROWS * cols)
    return carrier, total, values, turned


def fp8_add_rms_norm_fake(x, residual, weight, eps, row, fresh, keep):
    cols = x.shape[-1]
    rows = x.numel() // cols
    carrier = x.new_empty(1).expand(x.shape)
    return carrier, x.new_empty(x.shape), x.new_empty((rows, cols), dtype=E4M3), x.new_empty((cols, rows) if keep else (0,), dtype=E4M3)


def _save(ctx, inputs, output) -> None:
    _, _, weight, ctx.eps, *_ = inputs
    _, total, values, turned = output
    ctx.mark_non_differentiable(values, turned)
    ctx.save_for_backward(total, weight)


def _gradient(ctx, grad, grad_sum, *_):
    total, weight = ctx.saved_tensors
    dx, dweight = torch.ops.labkernels.rms_norm_backward(grad, total, weight, ctx.eps, grad_sum)
    return dx, dx, dweight, None, None, None, None


class Fp8Norm(RMSNorm):
    """The RMSNorm of a sum before an fp8 layer with delayed scales; `site`: the row of that layer's input, and `fresh`."""

    site: Sites | None = None

    def forward(self, x: torch.Tensor, kernel: str, residual: torch.Tensor | None = None):
        cols = x.shape[-1]
        if residual is None or x.dtype != torch.bfloat16 or residual.dtype != x.dtype or cols > MOST_COLUMNS or x.numel() // cols % 16:
            return super().forward(x, kernel, residual)
        args = x, residual, self.weight, self.eps, *self.site, torch.is_grad_enabled()
        carrier, total, values, turned = torch.ops.labkernels.fp8_add_rms_norm(*args)
        return Cast(carrier, values, turned), total


define("fp8_add_rms_norm", SCHEMA, fp8_add_rms_norm, fp8_add_rms_norm_fake)
torch.library.register_autograd("labkernels::fp8_add_rms_norm", _gradient, setup_context=_save, lib=LIBRARY)
