"""What an operation is, and the table of all of them: `ops["attention"]`.

An `Op` says what is computed (a reference in plain PyTorch), on what inputs it is judged, and what it costs in FLOPs and bytes.
Its `Variant`s are our implementations in teaching order, the ladder; its `Peer`s are other people's, measured beside them.
Everything that judges or measures (`labkernels.lab`) works from these descriptions alone, for every operation the same way.
"""

from __future__ import annotations

import html
import importlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from labkernels.errors import ArgumentError

Shape = dict[str, Any]  # what makes one set of inputs: sizes and options, such as {"rows": 3, "cols": 33}


class Tolerance(NamedTuple):
    """An element is right when |got - want| <= absolute + relative * |want|."""

    relative: float
    absolute: float


def _accepts_anything(**inputs) -> None:
    return None


@dataclass(frozen=True)
class Variant:
    """One of our implementations of an operation. `fn` takes the same keywords as the operation's public function."""

    name: str  # "v2_online"
    fn: Callable[..., torch.Tensor]
    idea: str  # one line: what this version changes, and what that buys
    source: Path | None = None
    accepts: Callable[..., str | None] = _accepts_anything  # called with the inputs; None, or the reason why it cannot take them
    owner: Callable[..., str] | None = None  # owner(index, **inputs): the block and thread that write this element of the result

    def __call__(self, *args, **kwargs) -> torch.Tensor:
        return self.fn(*args, **kwargs)


@dataclass(frozen=True)
class Peer:
    """Somebody else's implementation, measured beside ours in the same process."""

    name: str  # "cudnn"
    fn: Callable[..., torch.Tensor]
    accepts: Callable[..., str | None] = _accepts_anything
    distance: float = 0.0  # how far from the operation's its result may be, relatively: it computes what the operation approximates, or the reverse


class Ladder(dict[str, Variant]):
    """The variants of an operation in teaching order; shows as a table in a notebook."""

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(v.name)}</th><td style='text-align:left'>{html.escape(v.idea)}</td>"
            f"<td>{html.escape(v.source.name) if v.source else ''}</td></tr>"
            for v in self.values()
        )
        return f"<table><tr><th>variant</th><th style='text-align:left'>idea</th><th>source</th></tr>{rows}</table>"


@dataclass(frozen=True)
class Op:
    """One operation: what is computed, how it is judged, and how it is measured. `inputs` are keyword arguments of its function."""

    name: str
    summary: str
    load_variants: Callable[[], Mapping[str, Variant]]  # called once, when `.variants` is first read

    # What is computed
    reference: Callable[..., torch.Tensor]  # the definition in plain PyTorch, in the precision of its inputs
    native: Callable[..., torch.Tensor]  # PyTorch's own fast implementation, whose error ours may at most double
    problem: Callable[..., str | None]  # problem(**inputs): None, or what is wrong with these inputs

    # How it is judged
    make_inputs: Callable[..., dict[str, Any]]  # make_inputs(generator, device, dtype, **shape): random inputs
    axes: tuple[str, ...]  # names of the result's axes, for messages; a result of several that has fewer has the last of them
    dtypes: tuple[torch.dtype, ...]
    small_shapes: tuple[Shape, ...]  # for the sanitizer
    check_shapes: tuple[Shape, ...]  # for every device, small enough for the emulator
    tolerance: Callable[..., Tolerance]  # tolerance(dtype, **shape) for float32 accuracy scaled by dtype and reduction length
    element_times: float = 2.0  # in low precision, by how much one element may err beyond rounding: so many times PyTorch's own worst
    large_shapes: tuple[Shape, ...] = ()  # in addition, where there is a GPU
    optional: frozenset[str] = frozenset()  # options that a function may lack: it is not judged on the shapes that name one of these
    results: tuple[str, ...] = ("",)  # the names of the results where a function returns a tuple of several
    decode: Callable[..., Any] = lambda result, **inputs: result  # decode(result, **inputs): what is compared, where that is not the result
    deterministic: bool = True  # must the same inputs give the same bits each time? If not, then those with deterministic=True
    hints: Callable[[Any], str | None] = lambda failure: None  # hints(Failure): a sentence about the likely mistake

    # Where no kernel is needed
    trivial: Callable[..., Any] = lambda **inputs: None  # trivial(**inputs): the result if there is nothing to compute, else None

    # How it is measured
    complete_shape: Callable[..., Shape] = lambda dtype, **shape: shape  # fills in the sizes that a sweep leaves out
    sweep: Mapping[str, Sequence] = field(default_factory=dict)  # what `bench` runs when not told
    record_sweeps: tuple[Mapping[str, Sequence], ...] = ()  # what `labkernels bench --record` runs
    flops: Callable[..., float] = lambda **shape: 0.0
    bytes_moved: Callable[..., float] = lambda dtype, **shape: 0.0  # each input read once, each output written once
    memory_ceiling: str = "copy"  # what limits these bytes: "copy", or "read" where next to nothing is written
    compute_ceiling: str | None = None  # what limits these FLOPs, as in Ceilings.tflops: "float8_e4m3fn", "int8"; None: products of the inputs' dtype
    peers: Mapping[str, Peer] = field(default_factory=dict)

    @cached_property
    def variants(self) -> Ladder:
        """The ladder: our implementations by name, in teaching order."""
        return Ladder(self.load_variants())

    def each(self, result: Any) -> tuple[torch.Tensor, ...]:
        """The results one by one, whether there is one or a tuple of them; ArgumentError for fewer or more than `results` names."""
        if len(self.results) == 1:
            return (result,)
        if not isinstance(result, (tuple, list)) or len(result) != len(self.results):
            what = f"{len(result)} of them" if isinstance(result, (tuple, list)) else "None" if result is None else f"one {type(result).__name__}"
            raise ArgumentError(f"{self.name}: the result must be the tuple ({', '.join(self.results)}), got {what}")
        return tuple(result)

    def implementation(self, name: str) -> Variant | Peer:
        """The variant or peer called `name`; KeyError with the names there are."""
        known = {**self.variants, **self.peers}
        if name not in known:
            raise KeyError(f"{self.name}: no variant or peer named {name!r}{_suggestion(name, known)}")
        return known[name]

    def pick(self, **inputs) -> Variant:
        """The highest variant of the ladder that accepts these inputs; ArgumentError with every refusal if none does. The ladder ends with what is
        fastest nearly everywhere; operations for which that is not so have their own `pick`, by what was measured."""
        refusals = []
        for variant in reversed(self.variants.values()):
            reason = variant.accepts(**inputs)
            if reason is None:
                return variant
            refusals.append(f"{variant.name}: {reason}")
        raise ArgumentError(f"{self.name}: no variant accepts these inputs\n  " + "\n  ".join(refusals))

    def run(self, **inputs) -> torch.Tensor:
        """Compute the operation with the variant that `pick` names. ArgumentError names what is wrong with the inputs."""
        if torch._C._functorch.peek_interpreter_stack() is not None and any(map(_is_transformed, inputs.values())):
            raise ArgumentError(f"{self.name}: torch.vmap has no rule for it; give it all at once, or call it in a loop")
        problem = self.problem(**inputs)
        if problem is not None:
            raise ArgumentError(f"{self.name}: {problem}")
        needs_gradient = [name for name, value in inputs.items() if isinstance(value, torch.Tensor) and value.requires_grad]
        if needs_gradient and torch.is_grad_enabled():
            raise ArgumentError(
                f"{self.name}: {needs_gradient[0]} requires a gradient, and none goes through this call; "
                "make it under torch.no_grad() or pass a detached tensor"
            )
        trivial = self.trivial(**inputs)
        return self.pick(**inputs).fn(**inputs) if trivial is None else trivial

    def _repr_html_(self) -> str:
        return f"<b>{html.escape(self.name)}</b>: {html.escape(self.summary)}{self.variants._repr_html_()}"


def _is_transformed(value) -> bool:
    """Is it what torch.vmap (or torch.func.grad) makes of a tensor, which no kernel can be given?"""
    return isinstance(value, torch.Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value)


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32: how dtypes are written in tables and messages."""
    return str(dtype).removeprefix("torch.")


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A torch dtype from itself or its name."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{dtype!r} is not a dtype; write for example 'float32' or torch.bfloat16")
    return found


def product_of(sweep: Mapping[str, Any]) -> list[Shape]:
    """Every combination of a sweep such as {"seq_len": [512, 1024], "causal": True}; single values stay as they are."""
    choices = [value if isinstance(value, (list, tuple, range)) else [value] for value in sweep.values()]
    return [dict(zip(sweep, combination)) for combination in itertools.product(*choices)]


def _suggestion(name: str, known) -> str:
    close = get_close_matches(str(name), list(known), n=1)
    return (f"; did you mean {close[0]!r}?" if close else "") + f" There are: {', '.join(known)}"


class Registry(Mapping[str, Op]):
    """Every operation by name, imported when it is first asked for.

    Listed as `softmax`, an operation is the OP of `labkernels/softmax/op.py`; as `norm/rms_norm`, one of several that share a folder,
    it is called rms_norm and is the OP of `labkernels/norm/rms_norm_op.py`.
    """

    def __init__(self, places: Sequence[str]):
        self._modules = {}
        for place in places:
            folder, _, name = place.partition("/")
            self._modules[name or folder] = f"labkernels.{folder}.{name}_op" if name else f"labkernels.{folder}.op"

    def __getitem__(self, name: str) -> Op:
        if name not in self._modules:
            raise KeyError(f"no operation named {name!r}{_suggestion(name, self._modules)}")
        return importlib.import_module(self._modules[name]).OP

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {op.summary}" for name, op in self.items())

    def function(self, name: str) -> Callable[..., Any]:
        """The public function of an operation: of the same name, in its folder."""
        self[name]  # a KeyError here has a suggestion
        return getattr(importlib.import_module(self._modules[name].rpartition(".")[0]), name)


ops = Registry(
    [
        "sum",
        "softmax",
        "matmul",
        "symmetric_matmul",
        "scaled_matmul",
        "w8a8_matmul",
        "attention",
        "attention_backward",
        "ffn",
        "ffn/ffn_backward",
        "ffn/ffn_fp8",
        "norm/rms_norm",
        "norm/rms_norm_backward",
        "norm/layer_norm",
        "norm/layer_norm_backward",
        "norm/add_rms_norm",
        "norm/rms_norm_quantized",
        "gemv",
        "quant/quant_matmul",
        "kvcache/decode_attention",
        "sampling/sample_tokens",
        "loss/cross_entropy",
        "loss/linear_cross_entropy",
        "elementwise/residual_add",
        "elementwise/swiglu",
        "elementwise/swiglu_backward",
        "embedding/embedding",
        "embedding/embedding_backward",
        "masks/attention_mask",
        "masks/masked_softmax",
        "padding/pad",
        "padding/padding_offsets",
        "padding/unpad",
        "rope/rope",
        "rope/qkv_rope_cache",
    ]
)
