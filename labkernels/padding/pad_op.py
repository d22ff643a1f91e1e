"""The operation `pad`: padding put back. Tokens (total, cols) and inverse (batch, seq_len) to (batch, seq_len, cols), zeros in between."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.elementwise.peers import compiled
from labkernels.operation import Op, Peer, Tolerance, Variant
from labkernels.padding import unpad_op


def reference(packed: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Row inverse[b, s] of `packed` at [b, s], zeros where that is -1."""
    padded = packed.new_zeros((*inverse.shape, packed.shape[1]))
    padded[inverse >= 0] = packed[inverse[inverse >= 0].long()]
    return padded


def native(packed: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Without a wait for the GPU: every position reads some row, then padding is blanked."""
    return packed[inverse.clamp(min=0)].masked_fill_((inverse < 0)[..., None], 0)


def problem(packed: torch.Tensor, inverse: torch.Tensor) -> str | None:
    if packed.dim() != 2 or inverse.dim() != 2:
        return f"packed has shape {tuple(packed.shape)}, inverse has {tuple(inverse.shape)}; they must be (total, cols) and (batch, seq_len)"
    return unpad_op.rows_problem("packed", packed, "inverse", inverse)


def make_inputs(generator, device, dtype, *, batch: int, seq_len: int, cols: int, padded_at: str = "right", layout: str = "contiguous") -> dict:
    """Normally distributed tokens of the sequences that `unpad` is judged on; layouts other than contiguous have rows with a gap behind them."""
    indices, inverse = unpad_op.places(batch, seq_len, padded_at)
    stored = (len(indices), cols if layout == "contiguous" else 2 * cols)
    packed = torch.randn(stored, generator=generator, device=generator.device).to(device, dtype)[:, :cols]
    return {"packed": packed, "inverse": torch.tensor(inverse, dtype=torch.int32, device=device).view(batch, seq_len)}


def bytes_moved(dtype, *, batch, seq_len, cols, **_) -> int:
    return (sum(unpad_op.lengths_of(batch, seq_len)) + batch * seq_len) * cols * dtype.itemsize + 4 * batch * seq_len


def _hints(failure) -> str | None:
    packed, inverse = failure.inputs["packed"].double(), failure.inputs["inverse"].long()
    unblanked = native(packed, inverse.clamp(min=0))
    return failure.matching([("rows where padding belongs: -1 stands for zeros, not for the first row", unblanked)])


def load_variants() -> Mapping[str, Variant]:
    from labkernels.padding.pad_variants import VARIANTS

    return VARIANTS


OP = Op(
    name="pad",
    summary="padding put back: packed tokens to their places in padded sequences, zeros elsewhere",
    load_variants=load_variants,
    reference=reference,
    native=native,
    problem=problem,
    trivial=lambda packed, inverse: packed.new_zeros((*inverse.shape, packed.shape[1])) if packed.numel() == 0 or inverse.numel() == 0 else None,
    make_inputs=make_inputs,
    axes=("sequence", "position", "col"),
    dtypes=unpad_op.DTYPES,
    small_shapes=unpad_op.SHAPES[1:2],
    check_shapes=unpad_op.SHAPES[:4],
    large_shapes=unpad_op.LARGE_SHAPES,
    tolerance=lambda dtype, **_: Tolerance(relative=1e-7, absolute=1e-12),
    hints=_hints,
    complete_shape=unpad_op.OP.complete_shape,
    sweep=unpad_op.OP.sweep,
    record_sweeps=unpad_op.OP.record_sweeps,
    bytes_moved=bytes_moved,
    peers={"torch": Peer("torch", native), "torch.compile": compiled(native)},
)
