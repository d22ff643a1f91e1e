"""The operation `sample_tokens`: one token a row, drawn from logits. What it is, on what it is judged, and what it costs.

The random numbers are part of the definition (reference.py), so that a draw is right or wrong. What is compared is the tokens as rows of 0
with a 1 at the token; somebody else's draws (`Drawn`) count as right where each token is one that the settings keep.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from labkernels.errors import ArgumentError
from labkernels.operation import Op, Tolerance, Variant, dtype_name
from labkernels.sampling.peers import PEERS, Drawn
from labkernels.sampling.reference import adjusted, draw, kept

INTEGERS = (torch.int32, torch.int64)
SETTINGS = {  # name: (dtypes of a tensor, smallest, largest)
    "temperature": ((torch.float32,), 0.0, float("inf")),
    "top_k": (INTEGERS, 0, float("inf")),
    "top_p": ((torch.float32,), 0.0, 1.0),
    "min_p": ((torch.float32,), 0.0, 1.0),
    "repetition_penalty": ((torch.float32,), 0.0, float("inf")),
    "seed": (INTEGERS, -(2**63), 2**64 - 1),
    "position": (INTEGERS, 0, 2**64 - 1),
}


def reference(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, previous=None, seed=0, position=0):
    """The tokens by sorting, as rows of 0 with a 1 at the token."""
    tokens, _ = draw(logits, temperature, top_k, top_p, min_p, repetition_penalty, previous, seed, position)
    return _one_hot(tokens, logits)


def native(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, previous=None, seed=0, position=0) -> torch.Tensor:
    return draw(logits, temperature, top_k, top_p, min_p, repetition_penalty, previous, seed, position)[0]


def decode(result, *, logits, **settings) -> torch.Tensor:
    """What is compared in place of the tokens."""
    if isinstance(result, Drawn):
        options = {name: settings[name] for name in ("temperature", "top_k", "top_p", "min_p") if name in settings}
        seen = adjusted(logits.float(), settings.get("repetition_penalty", 1.0), settings.get("previous"))
        options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | options
        inside = kept(seen, **options).gather(1, result.tokens.long()[:, None])[:, 0]
        result = torch.where(inside, native(logits, **settings), result.tokens)
    if not isinstance(result, torch.Tensor) or result.dtype not in INTEGERS or result.shape != logits.shape[:1]:
        return result  # for the judge to complain about
    return _one_hot(result, logits)


def _one_hot(tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """(rows, vocab); nothing but 0 where the token is none of the row's."""
    vocab = logits.shape[1]
    inside = torch.where((tokens >= 0) & (tokens < vocab), tokens.long(), vocab)
    return F.one_hot(inside, vocab + 1)[:, :vocab].to(logits.dtype)


def problem(
    logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, previous=None, seed=0, position=0, return_logprobs=False
) -> str | None:  # fmt: skip
    """What is wrong with these inputs, or None. Of settings in tensors the values are not looked at."""
    if logits.dim() != 2:
        return f"logits has shape {tuple(logits.shape)}; it must have two axes, (rows, vocab)"
    if logits.dtype not in OP.dtypes:
        return f"logits is {dtype_name(logits.dtype)}; it must be {', '.join(map(dtype_name, OP.dtypes))}"
    rows, vocab = logits.shape
    if not 1 <= vocab < 2**31 - 2048:
        return f"logits has {vocab} tokens; it must have from 1 to 2^31 - 2048"
    given = dict(zip(SETTINGS, (temperature, top_k, top_p, min_p, repetition_penalty, seed, position)))
    for name, value in given.items():
        dtypes, smallest, largest = SETTINGS[name]
        if isinstance(value, torch.Tensor):
            if value.shape != (rows,):
                return f"{name} has shape {tuple(value.shape)}; it must be a number or have one for each row, ({rows},)"
            if value.dtype not in dtypes:
                return f"{name} is {dtype_name(value.dtype)}; it must be {' or '.join(map(dtype_name, dtypes))}"
            if value.device != logits.device:
                return f"{name} is on {value.device}, logits is on {logits.device}; both must be on one device"
        elif isinstance(value, bool) or not isinstance(value, int if dtypes == INTEGERS else (int, float)):
            return f"{name} is {value!r}; it must be {'an int' if dtypes == INTEGERS else 'a number'} or a tensor ({rows},)"
        elif not smallest <= value <= largest:
            return f"{name} is {value}; it must be {f'at least {smallest}' if largest == float('inf') else f'from {smallest} to {largest}'}"
    if not isinstance(repetition_penalty, torch.Tensor) and not repetition_penalty > 0:
        return f"repetition_penalty is {repetition_penalty}; it must be above 0"
    if previous is None:
        return None
    if previous.dim() != 2 or previous.shape[0] != rows or (previous.dtype == torch.bool and previous.shape[1] != vocab):
        return f"previous has shape {tuple(previous.shape)}; it must be ({rows}, n) token ids or a bool mask ({rows}, {vocab})"
    if previous.dtype not in (*INTEGERS, torch.bool):
        return f"previous is {dtype_name(previous.dtype)}; it must be int64, int32 or bool"
    if previous.device != logits.device:
        return f"previous is on {previous.device}, logits is on {logits.device}; both must be on one device"
    return None


def run(logits, temperature, top_k, top_p, min_p, repetition_penalty, previous, seed, position, return_logprobs):
    """By the fastest variant that accepts the inputs."""
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty}
    inputs = {"logits": logits.detach(), **settings, "previous": previous, "seed": seed, "position": position}
    wrong = problem(**inputs)
    if wrong is not None:
        raise ArgumentError(f"sample_tokens: {wrong}")
    variant = OP.pick(**inputs)
    return variant.fn(**inputs, return_logprobs=return_logprobs)


def shape(rows: int, vocab: int, **settings) -> dict:
    return {"rows": rows, "vocab": vocab, **settings}


def make_inputs(generator, device, dtype, *, rows, vocab, kind="normal", previous="none", each=False, layout="contiguous", **settings) -> dict:
    """Logits as `kind`: `normal` (of spread 2), `equal` (all alike), `rounded` (many ties), `masked` (two thirds are -inf), `peaked` (one far
    above the rest). `previous` tokens as `ids` or `mask`. With `each` every row has its own temperature, top_k, top_p, min_p, seed and
    position. Layouts: `apart` leaves a gap between rows, `transposed` makes columns dense."""

    def random(*size):
        return torch.rand(size, generator=generator, device=generator.device).to(device)

    values = 2 * torch.randn((rows, vocab), generator=generator, device=generator.device).to(device)
    token = torch.arange(vocab, device=device)[None, :]
    if kind == "equal":
        values = torch.full_like(values, 1.5)
    elif kind == "rounded":
        values = values.round()
    elif kind == "masked":
        values = values.masked_fill((token * 7 + 3) % 3 > 0, -torch.inf) if vocab > 2 else values
    elif kind == "peaked":
        values[:, vocab // 2] += 30
    logits = torch.empty((rows, vocab + 5), dtype=dtype, device=device)[:, 2 : vocab + 2] if layout == "apart" else torch.empty((rows, vocab), dtype=dtype, device=device)
    logits = logits.copy_(values) if layout != "transposed" else values.to(dtype).t().contiguous().t()
    inputs = {"logits": logits, "seed": 1234, **settings}
    if previous == "ids":
        inputs["previous"] = (random(rows, 9) * (vocab + 1)).long() - 1
    elif previous == "mask":
        inputs["previous"] = random(rows, vocab) < 0.3
    if each:
        inputs["temperature"] = 2 * random(rows) * (random(rows) < 0.8)
        inputs["top_k"] = (random(rows) * min(vocab, 40)).to(torch.int32)
        inputs["top_p"], inputs["min_p"] = random(rows), 0.1 * random(rows)
        inputs["seed"] = (random(rows) * 2**40).long() << 20
        inputs["position"] = (random(rows) * 2**40).long()
    return inputs


def load_variants() -> Mapping[str, Variant]:
    from labkernels.sampling.sample_tokens_variants import VARIANTS

    return VARIANTS


NUCLEUS = {"top_k": 50, "top_p": 0.9}

OP = Op(
    name="sample_tokens",
    summary="one token a row, by temperature, top-k, top-p, min-p and a repetition penalty",
    load_variants=load_variants,
    reference=reference,
    native=native,
    decode=decode,
    problem=problem,
    make_inputs=make_inputs,
    axes=("row", "token"),
    dtypes=(torch.float32, torch.bfloat16, torch.float16),
    small_shapes=(shape(2, 70, top_k=5, top_p=0.8), shape(3, 33, each=True, previous="ids", repetition_penalty=1.5), shape(1, 600, kind="equal")),
    check_shapes=(
        shape(1, 1),
        shape(3, 33, temperature=0.0),
        shape(33, 5, each=True),
        shape(5, 257, top_k=7, top_p=0.6, temperature=0.7),
        shape(4, 320, top_p=0.9, min_p=0.02),
        shape(3, 1000, top_k=300, top_p=0.95, kind="rounded"),
        shape(4, 640, **NUCLEUS, kind="equal"),
        shape(4, 100, top_k=20, kind="masked", previous="mask", repetition_penalty=0.7, layout="apart"),
        shape(7, 96, each=True, kind="rounded", previous="ids", repetition_penalty=1.3),
        shape(3, 40, top_p=0.5, layout="transposed"),
        shape(2, 64, temperature=0.0, kind="peaked", previous="ids", repetition_penalty=2.0),
    ),
    large_shapes=(
        shape(5, 128_256, **NUCLEUS),
        shape(3, 128_256, top_p=0.9),
        shape(17, 50_257, **NUCLEUS, previous="ids", repetition_penalty=1.2),
        shape(2, 262_144, top_k=1000, top_p=0.5),
        shape(2, 600_001, **NUCLEUS),
        shape(4, 32_000, temperature=0.0),
    ),
    tolerance=lambda dtype, **_: Tolerance(relative=1e-3, absolute=1e-3),  # of a 1 or a 0
    complete_shape=lambda dtype, *, rows, vocab=128_256, **settings: {"rows": rows, "vocab": vocab, "temperature": 1.0, **NUCLEUS, **settings},
    sweep={"dtype": ["float32"], "rows": [1, 16, 64]},
    record_sweeps=(
        {"dtype": ["float32", "bfloat16"], "top_k": [50], "top_p": [0.9], "rows": [1, 4, 16, 64, 256]},
        {"dtype": ["float32"], "top_k": [0], "top_p": [0.9], "rows": [1, 16, 64]},
        {"dtype": ["float32"], "top_k": [0], "top_p": [1.0], "rows": [1, 16, 64]},
    ),
    bytes_moved=lambda dtype, *, rows, vocab, **_: rows * (vocab * dtype.itemsize + 8),
    memory_ceiling="read",
    peers=PEERS,
)
