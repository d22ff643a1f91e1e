"""How v5 of `quant_matmul` is launched on Hopper: tiles, stages and parts, which of them for how many rows of x, and on what it can run."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from labkernels.cuda.kernel import Kernel
from labkernels.cuda.tensor_map import tensor_map
from labkernels.cuda.variants import c_type, ceil_div, hopper_refusal, processors
from labkernels.operation import Variant
from labkernels.quant.formats import FOUR_BIT, QuantizedWeight

FILE = Path(__file__).with_name("v5_hopper.cu")
SCHEMES = {"int4": "kInt4", "nf4": "kCodebook", "codebook": "kCodebook", "int8": "kInt8", "fp8": "kFp8"}
DEPTH = 128  # of k, in a stage
MOST_SHARED = 226 * 1024  # bytes of a block's shared memory, beside a few that the kernel declares


@dataclass(frozen=True)
class Config:
    """A block's tile: 64 * `consumers` * `parts` rows of the weight, `tokens` rows of x. At most `stages` of 128 of k in flight, `slabs` of the result
    on their way out. Tiles are taken in bands of `band` rows of tiles."""

    consumers: int
    parts: int
    tokens: int
    stages: int
    slabs: int
    band: int = 16

    @property
    def rows(self) -> int:
        return 64 * self.consumers * self.parts

    def copies(self, scheme: str) -> int:
        """How often a codebook's table of pairs stands in shared memory: once for each bank, or where x needs the room, for every fourth."""
        return 0 if SCHEMES[scheme] != "kCodebook" else 32 if self.tokens <= 64 else 8

    def memory(self, scheme: str, group_size: int | None) -> tuple[int, int]:
        """How many stages fit, at most `stages`, and the bytes of what Memory (v5_hopper.cu) lays out with them."""
        four_bit = scheme in FOUR_BIT
        w = self.rows * (DEPTH // 2 if four_bit else DEPTH)
        scales = DEPTH // group_size * self.rows * (4 if scheme == "int4" else 2) if four_bit else 0
        stage = ceil_div(2 * self.tokens * 128 + w + scales, 1024) * 1024 + 16
        rest = self.slabs * min(32, self.tokens) * 128 + 1024 * self.copies(scheme)
        stages = min(self.stages, (MOST_SHARED - rest) // stage)
        return stages, stages * stage + rest


CONFIGS = {  # by rows of the weight and of x
    "256x16": Config(4, 1, 16, 8, 4),
    "256x32": Config(4, 1, 32, 7, 4),
    "128x32": Config(2, 1, 32, 8, 4),
    "128x64": Config(2, 1, 64, 8, 4),
    "192x64": Config(3, 1, 64, 7, 6),
    "256x64": Config(2, 2, 64, 6, 4),
    "128x128": Config(2, 1, 128, 5, 4),
    "192x128": Config(3, 1, 128, 4, 6),
    "256x128": Config(2, 2, 128, 4, 4),
    "128x192": Config(2, 1, 192, 3, 4),
    "128x256": Config(2, 1, 256, 2, 4),
}


def v5_hopper(x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    return configured(best_config(x, weight), x, weight, bias)


def best_config(x: torch.Tensor, weight: QuantizedWeight) -> str:
    """The name of the configuration that should take the least time."""
    m = x.shape[0]
    return "256x16" if m <= 16 else "256x32" if m <= 32 else "256x64" if m <= 64 else "256x128" if m <= 128 else "128x256"


def configured(config: str | Config, x, weight: QuantizedWeight, bias=None, blocks: int | None = None) -> torch.Tensor:
    """v5 as CONFIGS[config], or as this one, in so many blocks, or as many as there are multiprocessors."""
    config = CONFIGS[config] if isinstance(config, str) else config
    (m, k), n = x.shape, weight.shape[0]
    y = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    x = for_copies(x)
    packed, scales, four_bit = weight.packed, weight.scales, weight.scheme in FOUR_BIT
    tiles, blocks = ceil_div(n, config.rows) * ceil_div(m, config.tokens), blocks or processors(x)
    blocks = min(blocks, tiles * ceil_div(k, DEPTH))
    whole = tiles // blocks * blocks
    scales = scales.view(torch.int32).view(-1, n) if weight.scheme == "int4" else scales
    map_x = tensor_map(x, (config.tokens, 64), 128)
    map_w = tensor_map(packed, (config.rows, DEPTH // 8), 64) if four_bit else tensor_map(packed, (config.rows, DEPTH), 128)
    map_scales = tensor_map(scales, (DEPTH // weight.group_size, config.rows)) if four_bit else map_w
    map_y = tensor_map(y, (min(32, config.tokens), 64), 128)
    workspace = counters = None
    if whole < tiles:
        workspace = torch.empty(2 * blocks * config.rows * config.tokens, dtype=torch.float32, device=x.device)
        counters = counters_for(x.device, blocks)
    args = (map_x, map_w, map_scales, map_y, None if four_bit else scales, weight.codebook, m, n, k, whole, config.band, workspace, counters)
    launched = _kernel(config, x.dtype, weight.scheme, weight.group_size)
    launched(blocks, 128 * (config.consumers + 1), args, config.memory(weight.scheme, weight.group_size)[1])
    return y if bias is None else y.add_(bias)


@functools.lru_cache(None)
def _kernel(config: Config, dtype: torch.dtype, scheme: str, group_size: int | None) -> Kernel:
    sizes = (config.consumers, config.parts, config.tokens, config.memory(scheme, group_size)[0], config.slabs, config.copies(scheme))
    arguments = f"{c_type(dtype)}, Scheme::{SCHEMES[scheme]}, {group_size or 0}, {', '.join(map(str, sizes))}"
    return Kernel(FILE, f"quant_matmul_hopper<{arguments}>")


_zeros: dict[tuple, torch.Tensor] = {}


def counters_for(device: torch.device, count: int) -> torch.Tensor:
    """Zeros that a kernel leaves as it found them. Kernels of one stream run one after another and share them."""
    key = device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    if key not in _zeros or _zeros[key].numel() < count:
        _zeros[key] = torch.zeros(max(count, 1024), dtype=torch.int32, device=device)
    return _zeros[key]


def for_copies(x: torch.Tensor) -> torch.Tensor:
    """The same rows where the copy engine can read them: each dense, and on a multiple of 16 bytes."""
    m, k = x.shape
    if (k == 1 or x.stride(1) == 1) and (m == 1 or x.stride(0) % 8 == 0) and x.data_ptr() % 16 == 0:
        return x
    return F.pad(x, (0, -k % 8)).contiguous()[:, :k] if k % 8 else x.clone(memory_format=torch.contiguous_format)


def _accepts(x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> str | None:
    if x.dtype not in (torch.bfloat16, torch.float16):
        return "takes x in bfloat16 and float16"
    if weight.shape[1] == 0 or weight.shape[0] % 8:
        return "takes k from 1 and n in multiples of 8"
    return hopper_refusal(x)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v5_hopper", v5_hopper, "wgmma with W unpacked into its registers, x by TMA; parts of tiles fill the GPU", FILE, _accepts),
    )
}
