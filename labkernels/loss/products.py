"""The matmul that makes a chunk's logits: ours on Hopper where there are many tokens, else PyTorch's."""

from __future__ import annotations

import torch

from labkernels.cuda.tensor_map import tensor_map
from labkernels.cuda.variants import ceil_div, processors
from labkernels.matmul import hopper


MANY_TOKENS = 1024  # from which ours is the faster one on an H200


def logits_into(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    """out = x @ weight.t()."""
    if x.is_cuda and len(x) >= MANY_TOKENS and x.stride(1) == weight.stride(1) == 1 and hopper.accepts(x, weight.t()) is None:
        by_hopper(out, x, weight)
    else:
        torch.mm(x, weight.t(), out=out)


def by_hopper(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    """out = x @ weight.t(), by v7 of `matmul`, which must accept them."""
    b = weight.t()
    (rows, depth), columns = x.shape, b.shape[1]
    config = hopper.best_config(rows, columns, ceil_div(depth * x.element_size(), hopper.STAGE_BYTES), False, processors(x))
    of_stage, slab = hopper.STAGE_BYTES // x.element_size(), 32 if config.columns % 64 else 64
    maps = tensor_map(x, (config.rows, of_stage), 128), tensor_map(weight, (config.columns, of_stage), 128), tensor_map(out, (64, slab), 2 * slab)
    kernel = hopper._kernel(config, x.dtype, out.dtype, False, False, False, 0)
    blocks, _ = config.blocks(rows, columns, processors(x))
    args = (*maps, maps[2], rows, columns, depth, None, None, None, 0, config.band)  # no residual
    kernel(blocks, 128 * (config.consumers + 1), args, config.shared_mem)
