"""Activation checkpointing: what a block keeps for its backward pass, and what it computes again.

    "none"         everything that the backward pass reads is kept
    "selective"    kept: what matmuls and attention made. Computed again: norms, rotations, activations, sums; a few percent of the time
    "full"         kept: the residual stream before each block. Computed again: the whole block, a third more arithmetic

Notable: a block hands on two tensors whose sum is the stream; before a block that is computed again they are added, so that one is kept.
"""

from __future__ import annotations

import functools

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from labkernels.errors import ArgumentError

MODES = ("none", "selective", "full")
OURS = (  # that are dear
    "attention", "attention_varlen", "rope_attention", "projected_attention", "matmul", "linear", "ffn", "swiglu_ffn", "fp8_linear", "fp8_ffn",
)  # fmt: skip
_aten, _ours = torch.ops.aten, torch.ops.labkernels


def expect_mode(mode: str) -> str:
    if mode not in MODES:
        raise ArgumentError(f"Transformer: checkpointing is {mode!r}; it must be one of {', '.join(map(repr, MODES))}")
    return mode


def run_block(mode: str, block, x: torch.Tensor, residual: torch.Tensor | None, context) -> tuple[torch.Tensor, torch.Tensor]:
    """block(x, residual, context), checkpointed where a gradient is wanted."""
    if mode == "none" or not torch.is_grad_enabled():
        return block(x, residual, context)
    stream = x if residual is None else x + residual
    options = {"context_fn": functools.partial(create_selective_checkpoint_contexts, _policy)} if mode == "selective" else {}
    return checkpoint(block, stream, None, context, use_reentrant=False, preserve_rng_state=False, **options)


@functools.cache
def _kept() -> frozenset:
    """Operators whose results are dear: products and attention, PyTorch's and ours."""
    import labkernels.llm.kernels
    import labkernels.llm.training.fp8_linear
    import labkernels.llm.training.packed_attention
    import labkernels.llm.training.packed_swiglu  # noqa: F401  define ours

    names = ("cudnn", "efficient", "flash")
    attention = [getattr(_aten, f"_scaled_dot_product_{name}_attention").default for name in names]
    attention += [_aten._scaled_dot_product_flash_attention_for_cpu.default, _aten._flash_attention_forward.default]
    products = [_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten._scaled_mm.default]
    ours = [getattr(_ours, name).default for name in OURS]
    return frozenset([*attention, *products, *ours])


def _policy(ctx, op, *args, **kwargs) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _kept() else CheckpointPolicy.PREFER_RECOMPUTE
