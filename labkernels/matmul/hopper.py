"""How v7 of `matmul` is launched: tiles, stages and clusters, and which of them for which sizes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from labkernels.cuda.kernel import Kernel
from labkernels.cuda.tensor_map import tensor_map
from labkernels.cuda.variants import ceil_div

FILE = Path(__file__).with_name("v7_hopper.cu")
ACTIVATIONS = {None: 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4}
TYPES = {torch.bfloat16: "__nv_bfloat16", torch.float16: "__half"}


@dataclass(frozen=True)
class Config:
    """A block's tile of C, `rows` x `columns`; `consumers` warpgroups that multiply; `stages` of k in flight; `slabs` of C on their way out;
    `cluster` blocks, one above the other, that share their columns of B."""

    rows: int
    columns: int
    consumers: int
    stages: int
    slabs: int
    cluster: int = 1
    band: int = 8

    @property
    def shared_mem(self) -> int:
        return self.stages * (self.rows + self.columns) * 128 + self.slabs * 8192 + 16 * self.stages


@functools.lru_cache(None)
def _kernel(config: Config, dtype, a_columns: bool, b_rows: bool, finish: bool, activation: int) -> Kernel:
    flags = [config.rows, config.columns, config.consumers, config.stages, config.slabs, config.cluster, *(str(f).lower() for f in (a_columns, b_rows, finish)), activation]
    defines = {"CLUSTERS": config.cluster} if config.cluster > 1 else {}
    return Kernel(FILE, f"matmul_hopper<{TYPES[dtype]}, {', '.join(map(str, flags))}>", defines=defines)


def configured(config: Config, a, b, bias=None, activation=None, residual=None) -> torch.Tensor:
    """v7 with this configuration."""
    (m, k), n = a.shape, b.shape[1]
    a_columns, b_rows = a.stride(1) != 1, b.stride(1) == 1
    out = torch.empty((m, n), dtype=a.dtype, device=a.device)
    map_a = tensor_map(a.t(), (64, 64), 128) if a_columns else tensor_map(a, (config.rows, 64), 128)
    map_b = tensor_map(b, (64, 64), 128) if b_rows else tensor_map(b.t(), (config.columns // config.cluster, 64), 128)
    slab = 32 if config.columns % 64 else 64
    map_c = tensor_map(out, (64, slab), 2 * slab)
    finish = bias is not None or residual is not None or activation is not None
    kernel = _kernel(config, a.dtype, a_columns, b_rows, finish, ACTIVATIONS[activation])
    processors = torch.cuda.get_device_properties(a.device).multi_processor_count if a.is_cuda else 2
    tiles = ceil_div(m, config.rows * config.cluster) * ceil_div(n, config.columns)
    blocks = min(processors // config.cluster, tiles) * config.cluster
    stride = residual.stride(0) if residual is not None else 0
    args = (map_a, map_b, map_c, m, n, k, bias, residual, stride, config.band)
    kernel(blocks, 128 * (config.consumers + 1), args, config.shared_mem)
    return out
