"""How v7 and v8 of `quant_matmul` are launched on Hopper: v5's tiles with warpgroups that take turns, and with W unpacked into shared memory."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

import torch

from labkernels.cuda.variants import processors
from labkernels.operation import Variant
from labkernels.quant.formats import FOUR_BIT, QuantizedWeight
from labkernels.quant.v5_variants import FEW, FEW_ROWS_FILE, MANY, UNPACKED_FILE, VARIANTS as V5, Config, Few, configured, microseconds

# v5's, and 256 rows of the weight by 64 of x: where warpgroups take turns, a fourth one has its use.
TURNS = {name: replace(config, turns=True) for name, config in (FEW | MANY).items()}
TURNS |= {f"256x64/{splits}": Few(4, 64, splits, turns=True) for splits in (1, 2, 3, 4, 6, 8)}
UNPACKED = {
    "128x128": Config(2, 1, 128, 64, unpacked=True),
    "192x128": Config(3, 1, 128, 64, slabs=6, unpacked=True),
    "128x256": Config(2, 1, 256, 64, unpacked=True),
}


def v7_turns(x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    return configured(TURNS[_best(x, weight, True)], x, weight, bias)


def v8_unpacked(x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    return configured(UNPACKED[_best(x, weight, False)], x, weight, bias)


def _best(x: torch.Tensor, weight: QuantizedWeight, turns: bool) -> str:
    return best_config(turns, x.shape[0], *weight.shape, processors(x) if x.is_cuda else 132, weight.scheme in FOUR_BIT)


@functools.lru_cache(4096)
def best_config(turns: bool, m: int, n: int, k: int, at_once: int, four_bit: bool = True) -> str:
    """The name of the configuration of v7 (`turns`) or v8 that should take the least time on so many multiprocessors."""
    configs: Mapping[str, Config | Few] = TURNS if turns else UNPACKED
    tokens = min([few.tokens for few in FEW.values() if few.tokens >= m], default=128)  # no more columns than there are rows of x
    allowed = [name for name, config in configs.items() if not turns or config.tokens == tokens or (m > 64 and config.tokens >= 64)]
    return min(allowed, key=lambda name: microseconds(configs[name], m, n, k, at_once, four_bit))


def _unpacked_accepts(x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> str | None:
    return V5["v5_hopper"].accepts(x, weight, bias)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("v7_turns", v7_turns, "v5, but warpgroups take turns: one multiplies while the others unpack", FEW_ROWS_FILE, _unpacked_accepts),
        Variant("v8_unpacked", v8_unpacked, "W unpacked into shared memory, where wgmma reads it and holds no warp", UNPACKED_FILE, _unpacked_accepts),
    )
}
