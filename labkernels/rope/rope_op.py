"""The operation `rope`: rotary position embedding of queries and keys. What it is, on what it is judged, and what it costs.

q is (batch, heads, seq, head_dim), k (batch, kv_heads, seq, head_dim), any strides. The first rotary_dim elements of a head are pairs, the
rest passes through. Pair i is (i, i + rotary_dim / 2), "half-split", as Hugging Face stores Llama; or (2 i, 2 i + 1), "interleaved", as in
the paper. A token at position p has pair i turned by the angle p * frequency[i]:

    (x, y) -> (x cos - y sin, y cos + x sin)

`angles` are the frequencies, float32 (rotary_dim / 2,), from which the kernel works out sines and cosines; or a table of them, float32
(max_positions, rotary_dim): cosines, then sines. `positions` (seq,) or (batch, seq), int32 or int64, are 0, 1, 2 ... if not given.
`inverse` turns back: the backward pass, because a rotation's transpose is its inverse.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.elementwise.peers import compiled
from labkernels.elementwise.rows import dtype_and_device_problem
from labkernels.operation import Op, Peer, Tolerance, Variant, dtype_name
from labkernels.rope.angles import rope_frequencies, rope_table

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def cos_sin(angles: torch.Tensor, positions: torch.Tensor | None, seq: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of each token's pairs, (seq, pairs) or (batch, seq, pairs), in the dtype of `angles`."""
    if positions is None:
        positions = torch.arange(seq, device=angles.device)
    if angles.dim() == 2:
        return tuple(angles[positions.long()].chunk(2, dim=-1))
    turned = positions[..., None] * angles
    return turned.cos(), turned.sin()


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """x (batch, heads, seq, head_dim) with its pairs turned; cos and sin broadcastable to (batch, heads, seq, pairs)."""
    pairs = cos.shape[-1]
    rotary, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    if interleaved:
        first, second = rotary[..., ::2], rotary[..., 1::2]
        rotary = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2)
    else:
        first, second = rotary[..., :pairs], rotary[..., pairs:]
        rotary = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return torch.cat([rotary, rest], dim=-1) if rest.shape[-1] else rotary


def reference(
    q: torch.Tensor, k: torch.Tensor, angles: torch.Tensor, positions: torch.Tensor | None = None, interleaved: bool = False, inverse: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k turned, as two new tensors; computed in the precision of their dtype."""
    cos, sin = (each.unsqueeze(-3).to(q.dtype) for each in cos_sin(angles, positions, q.shape[2]))
    sin = -sin if inverse else sin
    return turned(q, cos, sin, interleaved), turned(k, cos, sin, interleaved)


def problem(q, k, angles, positions=None, interleaved=False, inverse=False) -> str | None:
    """What is wrong with these inputs, or None."""
    for name, tensor in (("q", q), ("k", k)):
        if tensor.dim() != 4:
            return f"{name} has shape {tuple(tensor.shape)}; it must have four axes, (batch, heads, seq, head_dim)"
    for name, axis in (("batch", 0), ("seq", 2), ("head_dim", 3)):
        if k.shape[axis] != q.shape[axis]:
            return f"k has {name} {k.shape[axis]}, q has {q.shape[axis]}; both must be equal"
    if wrong := dtype_and_device_problem({"q": q, "k": k}, DTYPES):
        return wrong
    return angles_problem(angles, q.shape[3], q.device) or positions_problem(positions, (q.shape[0], q.shape[2]), q.device)


def angles_problem(angles, head_dim: int, device) -> str | None:
    if not isinstance(angles, torch.Tensor) or angles.dim() not in (1, 2) or angles.shape[-1] == 0:
        what = tuple(angles.shape) if isinstance(angles, torch.Tensor) else type(angles).__name__
        return f"angles is {what}; it must be frequencies (rotary_dim / 2,) or a table of cosines and sines (max_positions, rotary_dim)"
    if angles.dtype != torch.float32:
        return f"angles is {dtype_name(angles.dtype)}; it must be float32"
    rotary_dim = 2 * angles.shape[0] if angles.dim() == 1 else angles.shape[1]
    if rotary_dim % 2 or rotary_dim > head_dim:
        return f"angles are for {rotary_dim} elements of a head, head_dim is {head_dim}; they must be even in number, and at most as many"
    if angles.device != device:
        return f"angles is on {angles.device}, q is on {device}; both must be on one device"
    return None


def positions_problem(positions, sizes: tuple[int, int], device) -> str | None:
    if positions is None:
        return None
    if positions.dtype not in (torch.int32, torch.int64):
        return f"positions is {dtype_name(positions.dtype)}; it must be int32 or int64"
    if positions.dim() not in (1, 2) or positions.shape[-1] != sizes[1] or positions.dim() == 2 and positions.shape[0] not in (1, sizes[0]):
        return f"positions has shape {tuple(positions.shape)}; it must be (seq,) = ({sizes[1]},) or (batch, seq) = {sizes}"
    if positions.device != device:
        return f"positions is on {positions.device}, q is on {device}; both must be on one device"
    return None


def make_inputs(
    generator, device, dtype, *, batch: int, heads: int, kv_heads: int, seq: int, head_dim: int, rotary_dim: int | None = None,
    interleaved: bool = False, inverse: bool = False, positions: str = "none", table: bool = False, layout: str = "contiguous",
) -> dict:  # fmt: skip
    """Normally distributed q and k. Layout `seq_first` is a view of (batch, seq, heads, head_dim), as a model's linear layers write it;
    `packed` cuts both out of one such tensor; `reversed` is a view of (..., head_dim, seq). Positions: `none`; `shared` (seq,), from 1000 on;
    `each` (batch, seq), another start for each sequence, int32; `far`, up to 131072. Frequencies are Llama 3's."""
    both = heads + kv_heads
    stored = {"seq_first": (batch, seq, both, head_dim), "packed": (batch, seq, both + kv_heads, head_dim), "reversed": (batch, both, head_dim, seq)}
    values = torch.randn(stored.get(layout, (batch, both, seq, head_dim)), generator=generator, device=generator.device).to(device, dtype)
    if layout == "contiguous":
        q, k = values[:, :heads].contiguous(), values[:, heads:].contiguous()
    elif layout == "seq_first":
        q, k = values[:, :, :heads].contiguous().transpose(1, 2), values[:, :, heads:].contiguous().transpose(1, 2)
    elif layout == "packed":
        q, k = values.transpose(1, 2)[:, :heads], values.transpose(1, 2)[:, heads:both]
    else:
        q, k = values.mT[:, :heads], values.mT[:, heads:]
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    angles = rope_frequencies(rotary_dim or head_dim, 500_000.0, scaling, device=device)
    numbers = {
        "none": lambda: None,
        "shared": lambda: torch.arange(1000, 1000 + seq, device=device),
        "each": lambda: (torch.arange(seq, device=device) + 17 * torch.arange(batch, device=device)[:, None]).int(),
        "far": lambda: torch.arange(131_073 - seq, 131_073, device=device),
    }[positions]()
    if table:
        angles = rope_table(angles, max(2048, seq + 17 * batch))
    return {"q": q, "k": k, "angles": angles, "positions": numbers, "interleaved": interleaved, "inverse": inverse}


def hints(failure) -> str | None:
    """Name the classic mistake whose result this is."""
    from labkernels.lab.compare import doubled

    given = doubled(failure.inputs)
    which = 1 if failure.result == "k_out" else 0

    def result(**other):
        return reference(**{**given, **other})[which]

    mistakes = [
        ("turned the other way round: y cos - x sin; look at the signs", result(inverse=not given["inverse"])),
        (f"made of {'half-split' if given['interleaved'] else 'interleaved'} pairs", result(interleaved=not given["interleaved"])),
        ("not turned at all", (given["q"], given["k"])[which]),
    ]
    if given["positions"] is not None:
        mistakes += [("what comes out at the positions 0, 1, 2 ...: `positions` is not looked at", result(positions=None))]
    return failure.matching(mistakes)


def native(q, k, angles, positions=None, interleaved=False, inverse=False) -> tuple[torch.Tensor, torch.Tensor]:
    """As Hugging Face's Llama does it, and PyTorch alone can: q * cos + rotate_half(q) * sin, cosines and sines in q's dtype."""
    if interleaved or 2 * (angles.shape[0] if angles.dim() == 1 else angles.shape[1] // 2) != q.shape[3]:
        return reference(q, k, angles, positions, interleaved, inverse)
    cos, sin = (torch.cat([each, each], dim=-1).unsqueeze(-3).to(q.dtype) for each in cos_sin(angles, positions, q.shape[2]))
    sin = -sin if inverse else sin
    half = q.shape[3] // 2
    return tuple(x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin for x in (q, k))


def bytes_moved(dtype: torch.dtype, *, batch, heads, kv_heads, seq, head_dim, **_) -> int:
    """q and k read once and written once."""
    return 2 * batch * (heads + kv_heads) * seq * head_dim * dtype.itemsize


def shape(seq: int, **other) -> dict:
    return {"batch": 1, "heads": 2, "kv_heads": 1, "seq": seq, "head_dim": 64, **other}


def complete_shape(dtype, *, batch=4, seq=4096, heads=32, kv_heads=8, head_dim=128, layout="seq_first", **options) -> dict:
    return {"batch": batch, "heads": heads, "kv_heads": kv_heads, "seq": seq, "head_dim": head_dim, "layout": layout, **options}


def load_variants() -> Mapping[str, Variant]:
    from labkernels.rope.rope_variants import VARIANTS

    return VARIANTS


OP = Op(
    name="rope",
    summary="rotary position embedding of queries and keys",
    load_variants=load_variants,
    reference=reference,
    native=native,
    problem=problem,
    trivial=lambda q, k, **_: (torch.empty_like(q), torch.empty_like(k)) if q.numel() + k.numel() == 0 else None,
    make_inputs=make_inputs,
    axes=("batch", "head", "position", "dim"),
    results=("q_out", "k_out"),
    dtypes=DTYPES,
    small_shapes=(shape(1), shape(3, positions="each", batch=2, interleaved=True), shape(2, table=True, rotary_dim=32, layout="packed")),
    check_shapes=(
        shape(1, positions="shared"),
        shape(3, heads=1),
        shape(33, heads=9, batch=2, positions="each", layout="seq_first"),
        shape(5, heads=4, head_dim=128, layout="packed", positions="far"),
        shape(5, interleaved=True, positions="far", layout="seq_first"),
        shape(7, head_dim=96, inverse=True, table=True, positions="shared"),
        shape(6, head_dim=80, rotary_dim=32, heads=5),
        shape(4, head_dim=48, rotary_dim=16, interleaved=True, inverse=True, positions="shared"),
        shape(3, head_dim=6, rotary_dim=4, batch=2, positions="each"),
        shape(9, layout="reversed", interleaved=True, positions="shared"),
    ),
    large_shapes=(
        shape(1000, batch=2, heads=32, kv_heads=8, head_dim=128, layout="seq_first", positions="each"),
        shape(777, heads=9, kv_heads=3, head_dim=128, table=True),
        shape(500, heads=8, interleaved=True, positions="far"),
    ),
    tolerance=lambda dtype, **_: Tolerance(relative=4 * torch.finfo(torch.float32).eps, absolute=1e-5),
    hints=hints,
    complete_shape=complete_shape,
    sweep={"dtype": ["bfloat16"], "seq": [512, 4096]},
    record_sweeps=(
        {"dtype": ["bfloat16"], "layout": ["seq_first", "contiguous"], "seq": [512, 4096]},
        {"dtype": ["bfloat16"], "seq": [4096], "table": [True], "positions": ["each"]},
        {"dtype": ["bfloat16"], "layout": ["packed"], "seq": [4096], "interleaved": [True], "inverse": [True]},
        {"dtype": ["float32"], "seq": [4096]},
    ),
    flops=lambda *, batch, heads, kv_heads, seq, head_dim, **_: 3 * batch * (heads + kv_heads) * seq * head_dim,
    bytes_moved=bytes_moved,
    peers={"torch": Peer("torch", native), "torch.compile": compiled(native)},
)
