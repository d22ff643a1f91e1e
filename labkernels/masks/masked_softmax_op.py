"""The operation `masked_softmax`: softmax(scale * x + mask) over the keys of a matrix of attention scores.

x is (batch, heads, queries, keys). `mask` is broadcastable to that: bool, true where a key may be seen, or floating, added to the scores.
`causal` hides later keys, aligned bottom right. A row of which nothing may be seen becomes zeros, as in `labkernels.attention`; PyTorch's
own softmax makes it NaN.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkernels.elementwise.peers import compiled
from labkernels.operation import Op, Peer, Tolerance, Variant, dtype_name

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def scores(x: torch.Tensor, mask: torch.Tensor | None, scale: float, causal: bool) -> torch.Tensor:
    """scale * x + mask, -inf where a key is hidden."""
    x = x * scale
    if mask is not None:
        x = x.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else x + mask
    if causal:
        queries, keys = x.shape[2:]
        x = x.masked_fill(torch.ones(queries, keys, dtype=torch.bool, device=x.device).triu(keys - queries + 1), -torch.inf)
    return x


def reference(x: torch.Tensor, mask: torch.Tensor | None = None, scale: float = 1.0, causal: bool = False) -> torch.Tensor:
    weighed = scores(x, mask, scale, causal)
    top = weighed.amax(dim=-1, keepdim=True)
    weights = (weighed - top.masked_fill(top == -torch.inf, 0)).exp()
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def native(x: torch.Tensor, mask: torch.Tensor | None = None, scale: float = 1.0, causal: bool = False) -> torch.Tensor:
    return torch.softmax(scores(x, mask, scale, causal), dim=-1).nan_to_num().to(x.dtype)


def plain(x: torch.Tensor, mask: torch.Tensor | None = None, scale: float = 1.0, causal: bool = False) -> torch.Tensor:
    """As one writes it in PyTorch, NaN where nothing may be seen."""
    return torch.softmax(scores(x, mask, scale, causal), dim=-1)


def problem(x, mask=None, scale=1.0, causal=False) -> str | None:
    if x.dim() != 4:
        return f"x has shape {tuple(x.shape)}; it must have four axes, (batch, heads, queries, keys)"
    if x.dtype not in DTYPES:
        return f"x is {dtype_name(x.dtype)}; it must be float32, bfloat16 or float16"
    if mask is None:
        return None
    if mask.dtype not in (torch.bool, torch.float32, x.dtype):
        return f"mask is {dtype_name(mask.dtype)}; it must be bool (true: may be seen), or float32 or of x's dtype (added to the scores)"
    if mask.device != x.device:
        return f"mask is on {mask.device}, x is on {x.device}; both must be on one device"
    if mask.dim() > 4 or any(size not in (1, wanted) for size, wanted in zip(mask.shape[::-1], x.shape[::-1])):
        return f"mask has shape {tuple(mask.shape)}; it must be broadcastable to x's {tuple(x.shape)}"
    return None


MASKS = {  # what the mask is called in a shape: its axes (a 1 is broadcast), and its dtype (None: x's)
    "padding": (("batch", 1, 1, "keys"), bool),
    "pairs": (("batch", "heads", "queries", "keys"), bool),
    "whole_queries": (("queries", 1), bool),  # some queries see nothing at all
    "bias": ((1, "heads", "queries", "keys"), None),
    "float32_bias": (("queries", "keys"), torch.float32),
}


def make_inputs(
    generator, device, dtype, *, batch: int, heads: int, queries: int, keys: int, mask: str | None = None, scale: float = 0.125,
    causal: bool = False, layout: str = "contiguous",
) -> dict:  # fmt: skip
    """Scores of size 8. `mask` names one of MASKS; layout `apart` has rows with a gap behind them."""
    sizes = {"batch": batch, "heads": heads, "queries": queries, "keys": keys}
    stored = (batch, heads, queries, 2 * keys if layout == "apart" else keys)
    x = (8 * torch.randn(stored, generator=generator, device=generator.device)).to(device, dtype)[..., :keys]
    inputs = {"x": x, "mask": None, "scale": scale, "causal": causal}
    if mask is not None:
        axes, kind = MASKS[mask]
        values = torch.randn([sizes.get(axis, 1) for axis in axes], generator=generator, device=generator.device).to(device)
        inputs["mask"] = values > -0.5 if kind is bool else values.to(kind or dtype)
        if mask == "padding":
            inputs["mask"][..., 0] = True  # padding comes after a sequence, and none is empty
    return inputs


def bytes_moved(dtype, *, batch, heads, queries, keys, mask=None, causal=False, **_) -> float:
    """Scores that may be seen read once, every probability written once, the mask read once."""
    mask_bytes = 0
    if mask is not None:
        axes, kind = MASKS[mask]
        sizes, mask_bytes = {"batch": batch, "heads": heads, "queries": queries, "keys": keys}, 1 if kind is bool else (kind or dtype).itemsize
        for axis in axes:
            mask_bytes *= sizes.get(axis, 1)
    read = 0.5 * (1 + 1 / queries) if causal and queries == keys else 1
    return batch * heads * queries * keys * dtype.itemsize * (1 + read) + mask_bytes


def _hints(failure) -> str | None:
    from labkernels.lab.compare import doubled

    given = doubled(failure.inputs)
    mistakes = [("the softmax without its scale", reference(**{**given, "scale": 1.0}))]
    if given["mask"] is not None:
        mistakes.append(("the softmax without its mask", reference(**{**given, "mask": None})))
    if given["causal"]:
        mistakes.append(("the softmax without the causal mask", reference(**{**given, "causal": False})))
    return failure.matching(mistakes)


def shape(queries: int, keys: int, **other) -> dict:
    return {"batch": 1, "heads": 1, "queries": queries, "keys": keys, **other}


def complete_shape(dtype, *, keys=1024, queries=None, heads=32, batch=None, **options) -> dict:
    queries = queries or keys
    return {"batch": batch or max(1, 2**28 // (heads * queries * keys)), "heads": heads, "queries": queries, "keys": keys, **options}


def load_variants() -> Mapping[str, Variant]:
    from labkernels.masks.masked_softmax_variants import VARIANTS

    return VARIANTS


OP = Op(
    name="masked_softmax",
    summary="softmax(scale * x + mask) over the keys",
    load_variants=load_variants,
    reference=reference,
    native=native,
    problem=problem,
    trivial=lambda x, **_: x.new_empty(x.shape) if x.numel() == 0 else None,
    make_inputs=make_inputs,
    axes=("batch", "head", "query", "key"),
    dtypes=DTYPES,
    small_shapes=(shape(1, 1), shape(3, 33, causal=True, heads=2), shape(4, 8, batch=2, mask="padding")),
    check_shapes=(
        shape(1, 3),
        shape(3, 33, heads=2, mask="padding", batch=2),
        shape(7, 64, mask="pairs", heads=2, batch=2),
        shape(5, 40, mask="bias", heads=3, layout="apart"),
        shape(40, 40, causal=True, mask="float32_bias"),
        shape(9, 5, causal=True),  # the first queries see nothing
        shape(6, 72, mask="whole_queries", scale=-0.5),
    ),
    large_shapes=(
        shape(300, 1000, heads=4, causal=True),
        shape(64, 4096, heads=4, mask="pairs"),
        shape(5, 20_000, mask="padding"),
        shape(3, 50_001, mask="padding"),
    ),
    tolerance=lambda dtype, *, keys, **_: Tolerance(relative=torch.finfo(torch.float32).eps * (128 + 4 * keys**0.5), absolute=1e-10),
    hints=_hints,
    complete_shape=complete_shape,
    sweep={"dtype": ["bfloat16"], "keys": [256, 1024, 4096]},
    record_sweeps=(
        {"dtype": ["bfloat16"], "mask": ["padding"], "keys": [256, 1024, 4096]},
        {"dtype": ["bfloat16"], "mask": ["padding"], "causal": [True], "keys": [1024]},
    ),
    flops=lambda *, batch, heads, queries, keys, **_: 6 * batch * heads * queries * keys,
    bytes_moved=bytes_moved,
    peers={"torch": Peer("torch", plain), "torch.compile": compiled(plain)},
)
