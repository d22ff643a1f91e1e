"""What a quantisation costs a model: its loss on held-out text beside memory and tokens a second.

    table = compare(lambda: load_model(folder)[0], ["none", "int8", "int4", "int4-gptq-64", "int4-gptq+int8"], held_out, calibration)
    pareto.plot(table)

A recipe is the weights' scheme; then the quantiser, `-mse` or `-gptq`, and the group, `-32`, `-64`, `-128`; then `+int8` or `+fp8`, the cache's dtype.

Notable:
- the model runs as the engine runs it, with its cache: every key and value is read as the cache keeps it, from the first token on
- all recipes see the same tokens, so that what one costs is told from chance by the differences of single windows
- a loss may fall when weights are rounded, by luck; the divergence from the unquantised model's predictions cannot
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F
from tqdm import tqdm

from labkernels.errors import ArgumentError
from labkernels.llm.inference.cache import EngineCache
from labkernels.llm.inference.cached import CachedRunner
from labkernels.llm.quantisation.calibrate import plain_products, quantize_calibrated, quantize_searched
from labkernels.llm.inference.engine import Engine
from labkernels.llm.inference.options import CACHE_DTYPES
from labkernels.llm.quantisation.held_out import Windows
from labkernels.llm.model import Transformer
from labkernels.llm.quantisation.quantized import SCHEMES, check_scheme, quantize_model
from labkernels.nn import QuantLinear
from labkernels.operation import dtype_name
from labkernels.quant import quantize as quantize_weight

if TYPE_CHECKING:
    import pandas

RECIPES = (
    "none", "none+int8", "none+fp8", "int8", "fp8", "int4", "int4-mse", "int4-gptq", "int4-gptq+int8", "int4-gptq-32", "nf4", "nf4-gptq",
)  # fmt: skip
QUANTIZERS = ("nearest", "mse", "gptq")
LOGITS_BYTES = 256 * 2**20  # of a batch of windows
KEPT_BYTES = 2**30  # of the unquantised model's predictions, with which others are compared


@dataclass(frozen=True)
class Recipe:
    """How a model is stored."""

    scheme: str | None = None  # of the weights; None: as they are
    quantizer: str = "nearest"  # "nearest": scales reach the largest number; "mse": they err least; "gptq": calibrated
    group_size: int | None = None  # of int4 and nf4; None: 128
    cache: str | None = None  # "int8", "fp8"; None: the model's own dtype

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Raises ArgumentError."""
        weights, plus, cache = text.strip().partition("+")
        scheme, *rest = weights.split("-")
        quantizer = rest.pop(0) if rest and rest[0] in QUANTIZERS else "nearest"
        group = rest.pop(0) if rest else None
        if rest or scheme not in ("none", *SCHEMES) or (group is not None and not group.isdigit()) or (plus and cache not in CACHE_DTYPES):
            raise ArgumentError(
                f"evaluate: {text!r} is no quantisation; write none, {', '.join(SCHEMES)}, then -mse or -gptq, then -32, -64 or -128, then +int8 or +fp8 "
                "for the cache, as in int4-gptq-64+int8"
            )
        if scheme == "none" and weights != "none":
            raise ArgumentError(f"evaluate: {text!r}: none leaves the weights as they are; it takes no quantiser and no group")
        check_scheme(None if scheme == "none" else scheme, None if group is None else int(group))
        return cls(None if scheme == "none" else scheme, quantizer, None if group is None else int(group), cache if plus else None)

    @property
    def weights(self) -> str:
        """The part before the plus."""
        quantizer, group = [] if self.quantizer == "nearest" else [self.quantizer], [str(self.group_size)] if self.group_size else []
        return "-".join([self.scheme or "none", *quantizer, *group])

    def __str__(self) -> str:
        return self.weights + (f"+{self.cache}" if self.cache else "")


def compare(
    make: Callable[[], Transformer], recipes: Iterable[str | Recipe], held_out: Windows, calibration: Windows | None = None, *,
    head: str | None = None, context: int | None = None, speed: bool = False, progress: bool = False,
) -> pandas.DataFrame:  # fmt: skip
    """A row for each recipe, the unquantised model before all.

    `make` gives the model anew, which is then quantised in place. `calibration` is for GPTQ, and must not be of the held-out text. `head`: a scheme for
    the head of quantised models. `context`: tokens in the cache whose memory is counted; the model's max_seq_len unless given. `speed`: measure the
    engine, on a GPU alone. Columns: recipe, weights, quantizer, group_size, head, cache; loss (nats a token), perplexity, bits_per_byte; loss_change
    against the unquantised model, and its standard error; divergence (KL, nats a token) from its predictions; weight_bytes, cache_bytes_per_token,
    memory_bytes; tokens_per_s, runner; tokens. Raises ArgumentError.
    """
    import pandas

    wanted = [each if isinstance(each, Recipe) else Recipe.parse(each) for each in recipes]
    wanted = list(dict.fromkeys([Recipe(), *wanted]))
    weights = [each.weights for each in wanted]
    wanted.sort(key=lambda each: weights.index(each.weights))  # a model is made once for all its caches
    if calibration is None and (lacking := [str(each) for each in wanted if each.quantizer == "gptq"]):
        raise ArgumentError(f"evaluate: {lacking[0]} needs text to calibrate with, and there is none")
    if speed and not torch.cuda.is_available():
        raise ArgumentError("evaluate: tokens a second are measured on an NVIDIA GPU, and this machine has none; leave --speed out")
    rows, baseline, divergence, model, of = [], None, None, None, None
    for recipe in tqdm(wanted, desc="evaluating", leave=False, disable=None if progress else True):
        if model is None or recipe.weights != of:
            model = None  # its memory is free before the next one comes
            model, of = prepared(make(), recipe, calibration, head, progress), recipe.weights
        divergence = _Divergence(held_out.tokens.shape[1] - 1, model.config.vocab_size) if divergence is None else divergence
        losses = token_losses(model, held_out.tokens, recipe.cache, divergence)  # (windows, seq)
        baseline = losses if baseline is None else baseline
        row = _described(model, recipe, losses, baseline, held_out, context) | {"divergence": divergence.mean()}
        rows.append(row | (_speed(model, recipe) if speed else {"tokens_per_s": math.nan}))
    return pandas.DataFrame(rows)


def prepared(model: Transformer, recipe: Recipe, calibration: Windows | None = None, head: str | None = None, progress: bool = False) -> Transformer:
    """`model`, quantised in place as the recipe's weights say. Raises ArgumentError."""
    if recipe.scheme is None:
        return model
    plain_products(model, "evaluate")
    if recipe.quantizer == "nearest":
        return quantize_model(model, recipe.scheme, recipe.group_size, head)
    if recipe.quantizer == "mse":
        quantize_searched(model, recipe.scheme, recipe.group_size)
    else:
        quantize_calibrated(model, calibration.tokens[:, :-1], recipe.scheme, recipe.group_size, progress=progress)
    if head is not None:
        check_scheme(recipe.scheme, recipe.group_size, head)
        model.head = QuantLinear.from_weight(quantize_weight(model.head_weight.detach(), head))
    return model


@torch.no_grad()
def token_losses(
    model: Transformer, windows: torch.Tensor, cache_dtype: str | None = None, look: Callable[[int, torch.Tensor], None] | None = None
) -> torch.Tensor:
    """The loss of each target, float32 (windows, seq), on the CPU, for windows (n, seq + 1). `look` is shown each batch's first window's number and
    its logits, float32 (windows, seq, vocab_size)."""
    config, seq = model.config, windows.shape[1] - 1
    if seq > config.max_seq_len:
        raise ArgumentError(f"evaluate: windows have {seq} tokens; the model takes {config.max_seq_len}")
    if int(windows.max()) >= config.vocab_size:
        found = f"the text has the token {int(windows.max())}, and the model's vocabulary is {config.vocab_size}"
        raise ArgumentError(f"evaluate: {found}; the tokenizer is another's")
    model.eval()
    device, dtype = model.embedding.weight.device, model.embedding.weight.dtype
    batch = max(1, min(len(windows), LOGITS_BYTES // (4 * seq * config.vocab_size)))
    page = 64
    stored = CACHE_DTYPES.get(cache_dtype, dtype)
    cache = EngineCache(config.num_layers, batch * -(-seq // page), config.num_kv_heads, page, config.head_dim, stored, device, share_prefixes=False)
    runner, found, left = CachedRunner(model, cache, invariant=False), [], len(windows)
    for some in windows.split(batch):
        inputs, targets = some[:, :-1], some[:, 1:].to(device)
        sequences = {cache.add()[0]: row for row in inputs.tolist()}
        step = cache.step(sequences)
        logits = runner.prefill(inputs.flatten().to(device), step, list(range(inputs.numel())))  # (windows * seq, vocab_size)
        if look is not None:
            look(len(windows) - left, logits.view(*targets.shape, -1))
        left -= len(some)
        found.append(F.cross_entropy(logits, targets.flatten(), reduction="none").view(targets.shape).cpu())
        for sequence in sequences:
            cache.finish(sequence)
    return torch.cat(found)


class _Divergence:
    """How far predictions are from those of the model that is seen first: KL divergence, nats a token, over as many windows as there is room for."""

    def __init__(self, seq: int, vocab_size: int):
        self.room = max(1, KEPT_BYTES // (4 * seq * vocab_size))
        self.kept: list[torch.Tensor] = []
        self.sums: list[float] = []
        self.first = True

    def __call__(self, number: int, logits: torch.Tensor) -> None:
        logits = logits[: max(0, self.room - number)].log_softmax(-1)
        if not len(logits):
            return
        if self.first:
            self.kept.append(logits.cpu())
            self.sums.append(0.0)
            return
        before = self.kept[len(self.sums)].to(logits.device)
        self.sums.append(float((before.exp() * (before - logits)).sum(-1).double().sum()))

    def mean(self) -> float:
        """Of what was seen since the last call."""
        tokens, found = sum(each.shape[0] * each.shape[1] for each in self.kept), sum(self.sums)
        self.first, self.sums = False, []
        return found / tokens


def weight_bytes(model: Transformer) -> int:
    """Of all weights as they are stored; a tied head is counted once, RoPE's table not at all."""
    kept = {id(tensor): tensor for name, tensor in (*model.named_parameters(), *model.named_buffers()) if name != "angles"}
    return sum(tensor.nbytes for tensor in kept.values())


def _described(model: Transformer, recipe: Recipe, losses: torch.Tensor, baseline: torch.Tensor, held_out: Windows, context: int | None) -> dict:
    config, dtype = model.config, model.embedding.weight.dtype
    loss, targets = float(losses.double().mean()), held_out.tokens[:, 1:]
    change = (losses - baseline).double().mean(1)  # (windows,)
    size = int(held_out.token_bytes[targets].sum())
    stored = CACHE_DTYPES.get(recipe.cache, dtype)
    of_token = 2 * config.num_layers * config.num_kv_heads * (config.head_dim * stored.itemsize + (4 if recipe.cache else 0))
    weights = weight_bytes(model)
    quantised = next((layer for layer in model.modules() if isinstance(layer, QuantLinear)), None)
    head = model.head.scheme if isinstance(model.head, QuantLinear) else dtype_name(dtype)
    return {
        "recipe": str(recipe), "weights": quantised.scheme if quantised else dtype_name(dtype), "quantizer": recipe.quantizer if recipe.scheme else "",
        "group_size": (quantised.group_size or 0) if quantised else 0, "head": head, "cache": recipe.cache or dtype_name(dtype),
        "loss": loss, "perplexity": math.exp(loss), "bits_per_byte": loss * targets.numel() / math.log(2) / size if size else math.nan,
        "loss_change": float(change.mean()), "loss_change_error": float(change.std() / len(change) ** 0.5) if len(change) > 1 else math.nan,
        "weight_bytes": weights, "cache_bytes_per_token": of_token,
        "memory_bytes": weights + (context or config.max_seq_len) * of_token, "tokens": targets.numel(),
    }  # fmt: skip


def _speed(model: Transformer, recipe: Recipe, prompt: int = 64, new: int = 256) -> dict:
    """Of the engine at batch 1, as `bench_engine` measures it."""
    from labkernels.llm.inference.bench_engine import measure

    length = min(model.config.max_seq_len, 64 * -(-(prompt + new + 64) // 64))
    prompt = min(prompt, length // 4)
    engine = Engine(model, max_batch=1, max_seq_len=length, cache_dtype=recipe.cache, lookahead=32, share_prefixes=False)
    found = measure(engine, 1, prompt, min(new, length - prompt))
    return {"tokens_per_s": found["tokens_per_s"], "runner": type(engine.runner).__name__}


def summary(table: pandas.DataFrame) -> Sequence[str]:
    """The table as lines for a terminal."""
    speed = table.tokens_per_s.notna().any()
    titles = f"{'':<18}{'perplexity':>11}{'bits/byte':>11}{'loss change':>20}{'KL':>9}{'weights':>11}{'with cache':>12}"
    lines = [titles + (f"{'tokens/s':>10}" if speed else "")]
    for row in table.itertuples():
        error = "" if math.isnan(row.loss_change_error) else f" ± {row.loss_change_error:.4f}"
        change = "" if row.Index == 0 else f"{row.loss_change:+.4f}{error}"
        line = f"{row.recipe:<18}{row.perplexity:>11.3f}{row.bits_per_byte:>11.4f}{change:>20}{row.divergence:>9.5f}"
        line += f"{row.weight_bytes / 1e6:>8.1f} MB{row.memory_bytes / 1e6:>9.1f} MB"
        lines.append(line + (f"{row.tokens_per_s:>10.0f}" if speed else ""))
    return lines
