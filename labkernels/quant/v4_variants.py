"""How v4 of `quant_matmul`, on tensor cores, is launched: tiles and stages, which of them for how many rows of x, and on what it can run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from labkernels.cuda import lasting
from labkernels.cuda.variants import ceil_div, kernel, processors
from labkernels.operation import Variant
from labkernels.quant.formats import FOUR_BIT, QuantizedWeight
from labkernels.quant.v5_variants import SCHEMES, STEP, for_copies

FILE = Path(__file__).with_name("v4_tensor_cores.cu")


@dataclass(frozen=True)
class Config:
    """A block's tile: 16 * `warps` * `tiles` rows of the weight, `tokens` rows of x; `stages` of 128 of k, one of which is computed with;
    `blocks` of them run on a multiprocessor at once."""

    warps: int
    tiles: int
    tokens: int
    stages: int
    blocks: int

    @property
    def rows(self) -> int:
        return 16 * self.warps * self.tiles

    def shared_mem(self, scheme: str) -> int:
        """sizeof STAGES of Stage (v4_tensor_cores.cu), and a codebook's table."""
        w = self.warps * self.tiles * 2 * (512 + 128 if scheme in FOUR_BIT else 1024)
        return self.stages * (self.tokens * STEP * 2 + w) + (32 * 1024 if SCHEMES[scheme] == "kCodebook" else 0)


CONFIGS = {  # by rows of the weight and of x
    "64x8": Config(4, 1, 8, 5, 2),
    "128x8": Config(8, 1, 8, 5, 2),
    "128x16": Config(8, 1, 16, 5, 2),
    "128x32": Config(4, 2, 32, 4, 2),
    "128x64": Config(4, 2, 64, 3, 2),
    "256x64": Config(8, 2, 64, 3, 1),
}


def v4_tensor_cores(x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    m = x.shape[0]
    return configured("128x8" if m <= 8 else "128x16" if m <= 16 else "128x32" if m <= 32 else "128x64", x, weight, bias)


def configured(config: str | Config, x, weight: QuantizedWeight, bias=None, blocks: int | None = None) -> torch.Tensor:
    """v4 as CONFIGS[config], or as this one, in so many blocks, or as many as run at once."""
    config = CONFIGS[config] if isinstance(config, str) else config
    (m, k), n = x.shape, weight.shape[0]
    y = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    x = for_copies(x)
    tiles, blocks = ceil_div(n, config.rows) * ceil_div(m, config.tokens), blocks or processors(x) * config.blocks
    blocks = min(blocks, tiles * ceil_div(k, STEP))
    whole = tiles // blocks * blocks
    workspace = counters = None
    if whole < tiles:
        workspace = torch.empty(2 * blocks * config.rows * config.tokens, dtype=torch.float32, device=x.device)
        counters = lasting.counters(blocks, x.device)
    four_bit = weight.scheme in FOUR_BIT
    row_bytes = weight.packed.shape[1] * weight.packed.element_size()
    sizes = (weight.group_size or 0, config.warps, config.tiles, config.tokens, config.stages)
    launched = kernel(FILE, "quant_matmul_tensor_cores", x.dtype, f"Scheme::{SCHEMES[weight.scheme]}", *sizes)
    args = (
        x, weight.packed, weight.scales, weight.codebook, y, m, n, k, x.stride(0), row_bytes, weight.scales.shape[0] if four_bit else 1, whole,
        workspace, counters,
    )  # fmt: skip
    launched(blocks, 32 * config.warps, args, config.shared_mem(weight.scheme))
    return y if bias is None else y.add_(bias)


def _accepts(x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> str | None:
    if x.dtype not in (torch.bfloat16, torch.float16):
        return "takes x in bfloat16 and float16"
    if weight.shape[1] == 0:
        return "takes k from 1"
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < ((8, 9) if weight.scheme == "fp8" else (8, 0)):
        return "needs a GPU of compute capability 8.0 or higher, 8.9 for fp8"
    return None


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v4_tensor_cores", v4_tensor_cores, "mma.sync with W unpacked in registers; parts of tiles fill the GPU", FILE, _accepts),
    )
}
