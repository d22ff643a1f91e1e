"""How far a quantised weight is from the one it was made of, by scheme: the table of lab 10.

    accuracy_table(weight, inputs)      # a DataFrame: scheme, quantiser, bits a weight, errors of the weight and of the layer's output
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch

from labkernels.quant.formats import FOUR_BIT, QuantizedWeight
from labkernels.quant.gptq import hessian, quantize_gptq
from labkernels.quant.quantizers import quantize

if TYPE_CHECKING:
    import pandas

SCHEMES = (("int8", None), ("fp8", None), ("int4", 128), ("int4", 64), ("int4", 32), ("nf4", 128), ("nf4", 64), ("nf4", 32))


def weight_error(weight: torch.Tensor, quantized: QuantizedWeight) -> float:
    """|w - dequantised| / |w|, Frobenius norms."""
    weight = weight.double()
    return float((quantized.dequantize(torch.float64) - weight).norm() / weight.norm())


def output_error(weight: torch.Tensor, quantized: QuantizedWeight, inputs: torch.Tensor) -> float:
    """|x w^T - x dequantised^T| / |x w^T| over inputs (..., k), Frobenius norms."""
    x, weight = inputs.reshape(-1, inputs.shape[-1]).double(), weight.double()
    return float((x @ (quantized.dequantize(torch.float64) - weight).t()).norm() / (x @ weight.t()).norm())


def accuracy_table(
    weight: torch.Tensor, inputs: torch.Tensor, calibration: torch.Tensor | None = None, schemes: Iterable[tuple[str, int | None]] = SCHEMES
) -> pandas.DataFrame:
    """A row for each scheme and quantiser: round to nearest, searched scales, and GPTQ where there are `calibration` inputs (..., k).

    Columns: scheme, group_size (0: one scale a row), quantizer ("nearest", "mse", "gptq"), bits_per_weight, weight_error, output_error. Errors
    are relative, over `inputs`, which should be others than those for calibration.
    """
    import pandas

    return pandas.DataFrame(_rows(weight, inputs, calibration, schemes))


def _rows(weight, inputs, calibration, schemes) -> Iterator[dict]:
    h = None if calibration is None else hessian(calibration)
    for scheme, group_size in schemes:
        made = {"nearest": quantize(weight, scheme, group_size), "mse": quantize(weight, scheme, group_size, search="mse")}
        if h is not None and scheme in FOUR_BIT:
            made["gptq"] = quantize_gptq(weight, h, scheme, group_size)
        for quantizer, quantized in made.items():
            yield {
                "scheme": scheme,
                "group_size": group_size or 0,
                "quantizer": quantizer,
                "bits_per_weight": quantized.bits_per_weight,
                "weight_error": weight_error(weight, quantized),
                "output_error": output_error(weight, quantized, inputs),
            }
