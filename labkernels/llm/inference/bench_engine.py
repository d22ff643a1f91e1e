"""The engine measured, rung by rung, and its peers in the same process: tokens/s, time to the first token, launches, bytes, share of the limit.

    python -m labkernels.llm.inference.bench_engine llama-3.2-1b --runners cached fused graphs early --peers reduce-overhead --out engine.csv
    python -m labkernels.llm.inference.bench_engine llama-3.2-1b --quantize int4 --head int8 --batch 1 4 16 64 --prompt 1024 --out engine.csv --append

Weights are random: the time does not depend on them. All begin with the prompts' tokens on the CPU and end with new tokens there; figures are
medians of several runs, after others in which all is compiled and captured. tokens/s counts the tokens that come while all requests are running, in
the time that they take: after the last one has its first token, and before the first one has its last, which are not the same for all, as prompts
are read in passes. Where that leaves fewer than LEAST_STEPS steps, it counts all tokens after the last first one, and `note` says how many were
running on average. The limit is the time of reading weights, keys and values once a token at the bandwidth measured in the same run
(lk.lab.ceilings).
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from labkernels.llm.config import ModelConfig
from labkernels.llm.inference.engine import Engine
from labkernels.llm.inference.options import CACHE_DTYPES
from labkernels.llm.estimate import inference_memory
from labkernels.llm.model import Transformer
from labkernels.llm.inference.requests import Request, SamplingParams
from labkernels.nn import QuantLinear


COMPILED = ("default", "reduce-overhead", "max-autotune")  # peers that are torch.compile's modes
REPEATS, ENOUGH_S = 5, 1.0  # timed runs, and the seconds after which there is no other
LEAST_STEPS = 8  # of all requests, for tokens/s


def random_model(config: ModelConfig, dtype: torch.dtype, device, quantize: str | None = None, head: str | None = None) -> Transformer:
    """Weights of the usual size, made on the device, quantised layer by layer."""
    with torch.device("meta"):
        model = Transformer(config, dtype=dtype)
    for name, parameter in list(model.named_parameters()):
        owner = model.get_submodule(name.rpartition(".")[0])
        made = torch.ones(parameter.shape, dtype=dtype, device=device)
        made = made if parameter.dim() == 1 else made.normal_(std=0.02)
        leaf = name.split(".")[-2]
        if quantize and leaf in ("qkv_proj", "out_proj", "gate_up_proj", "up_proj", "down_proj"):
            layer = torch.nn.Linear(*reversed(made.shape), bias=False, device="meta")
            layer.weight = torch.nn.Parameter(made, requires_grad=False)
            setattr(model.get_submodule(name.rsplit(".", 2)[0]), leaf, QuantLinear.from_linear(layer, quantize))
        else:
            owner.weight = torch.nn.Parameter(made, requires_grad=False)
    model.angles = model._angles(device)
    if quantize and head:
        from labkernels.quant import quantize as quantize_weight

        model.head = QuantLinear.from_weight(quantize_weight(model.head_weight.detach(), head))
    return model


def read_bytes(model: Transformer, batch: int, length: float, cache) -> int:
    """Bytes that a decode step must read: every weight but the embedding's table (of which the head is one read, where tied), keys and values."""
    weights = sum(t.numel() * t.element_size() for name, t in (*model.named_parameters(), *model.named_buffers()) if name != "angles")
    if model.head is not None:
        weights -= model.embedding.weight.numel() * model.embedding.weight.element_size()
    per_token = cache.nbytes / (cache.k.shape[1] * cache.k.shape[3])
    return int(weights + batch * length * per_token)


def peer_peak_bytes(peak_bytes: int, model: Transformer, peer: str) -> int:
    """Of the most bytes that there were while `peer` ran, those that it needs: beside Hugging Face's own weights `model` lay unused."""
    if peer != "hugging-face":
        return peak_bytes
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers())}
    return peak_bytes - sum(storages.values())


def measure(engine: Engine, batch: int, prompt: int, new: int) -> dict:
    """Runs of `batch` requests, after short ones that warm up: a pass over prompts is captured when it comes again. Seconds are the CPU's."""
    prompts = _prompts(engine.config, batch, prompt)

    def run(new: int) -> tuple[float, float, int, str | None, list]:
        """Seconds to the last first token; of what is counted seconds, tokens and a note; all tokens."""
        _synchronize(engine.device)
        start = time.perf_counter()
        requests = [engine.submit(one, SamplingParams(max_new_tokens=new, ignore_eos=True)) for one in prompts]
        while not all(request.tokens for request in requests):
            engine.step()
        counted = _count_rest(engine, requests)
        return max(request.first_token_at for request in requests) - start, *counted, [request.tokens for request in requests]

    run(min(new, 3 + 2 * engine.lookahead))
    run(min(new, 3))
    runs = _several(lambda: run(new))
    first_s, rest_s, rest, note, tokens = statistics.median(each[0] for each in runs), statistics.median(each[1] for each in runs), *runs[0][2:]
    found = {
        "tokens_per_s": rest / rest_s, "ms_per_token": 1e3 * batch * rest_s / rest, "first_token_ms": 1e3 * first_s,
        "prefill_tokens_per_s": batch * prompt / first_s, "drawn": tokens,
    }  # fmt: skip
    return found if note is None else found | {"note": note}


def _count_rest(engine: Engine, requests: list[Request]) -> tuple[float, int, str | None]:
    """Has the engine finish these, which have their first tokens. Seconds in which all were running, and the tokens that came in them; or those to the
    end, and a note."""
    _synchronize(engine.device)
    begin, before = time.perf_counter(), [len(request.tokens) for request in requests]
    drawn, together, together_s = [0], 0, 0.0
    while not engine.idle:
        engine.step()
        drawn = [len(request.tokens) - first for request, first in zip(requests, before)]
        if len(set(drawn)) == 1:
            together, together_s = drawn[0], time.perf_counter() - begin
    _synchronize(engine.device)
    seconds, steps = time.perf_counter() - begin, max(drawn)
    if LEAST_STEPS <= together < steps:
        return together_s, together * len(requests), None
    note = None if together == steps else f"on average {sum(drawn) / steps:.1f} of {len(requests)} running"
    return seconds, sum(drawn), note


def _prompts(config: ModelConfig, batch: int, prompt: int) -> list[list[int]]:
    return torch.randint(0, config.vocab_size, (batch, prompt), generator=torch.Generator().manual_seed(0)).tolist()


def _several(run: Callable[[], tuple]) -> list[tuple]:
    begin, found = time.perf_counter(), [run()]
    while len(found) < REPEATS and time.perf_counter() - begin < ENOUGH_S:
        found.append(run())
    return found


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_peer(model: Transformer, mode: str, batch: int, prompt: int, new: int) -> dict:
    """Runs of one of peers.py: "eager", "hugging-face" (its static cache, and its step compiled by "reduce-overhead"), or a mode of torch.compile."""
    from labkernels.llm.inference.peers import REDUCE_OVERHEAD, CompiledPeer, HuggingFacePeer

    torch._dynamo.reset()  # else a second shape is compiled for all shapes, and is slower
    device, longest = model.head_weight.device, -(-(prompt + new) // 8) * 8
    if mode == "hugging-face":
        peer = HuggingFacePeer(model.config, model.head_weight.dtype, device, longest, REDUCE_OVERHEAD if device.type == "cuda" else None)
    else:
        peer = CompiledPeer(model, batch, longest, None if mode == "eager" else mode)
    prompts = _prompts(model.config, batch, prompt)

    def run(new: int) -> tuple[float, list]:
        _synchronize(device)
        start = time.perf_counter()
        drawn = peer.generate(torch.tensor(prompts, device=device), new).tolist()
        return time.perf_counter() - start, drawn

    compiled_s, _ = run(min(new, 12))
    for _ in range(2):  # a CUDA graph is recorded at the second call
        run(min(new, 3))
    first_s = statistics.median(each[0] for each in _several(lambda: run(1)))
    runs = _several(lambda: run(new))
    all_s, drawn = statistics.median(each[0] for each in runs), runs[0][1]
    return {
        "tokens_per_s": batch * (new - 1) / (all_s - first_s), "ms_per_token": 1e3 * (all_s - first_s) / (new - 1), "first_token_ms": 1e3 * first_s,
        "prefill_tokens_per_s": batch * prompt / first_s, "drawn": drawn, "note": f"compiled in {compiled_s:.0f} s",
    }  # fmt: skip


def launches(engine: Engine) -> float:
    """Kernels a decode step, as PyTorch's profiler counts them; nan where it cannot."""
    try:
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        request = engine.submit([1] * 16, SamplingParams(max_new_tokens=66, ignore_eos=True))
        while len(request.tokens) < 2:
            engine.step()
        before = len(request.tokens)
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            engine.step()
            torch.cuda.synchronize()
        on_gpu = [event for event in seen.key_averages() if event.device_type == DeviceType.CUDA]
        count = sum(event.count for event in on_gpu if not event.key.startswith("Mem"))
        steps = len(request.tokens) - before
        engine.cancel(request)
        return count / steps
    except (RuntimeError, AttributeError, ZeroDivisionError):
        return float("nan")


def main(arguments: list[str] | None = None) -> None:
    given = _parser().parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("bench_engine: figures are measured on an NVIDIA GPU, and this machine has none")
    from labkernels.lab.ceilings import measure_ceilings

    bench(given, torch.device("cuda"), measure_ceilings().read_gb_per_s or float("nan"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a preset of ModelConfig")
    parser.add_argument("--runners", nargs="*", default=["early"])
    parser.add_argument("--peers", nargs="*", default=[], help="eager, reduce-overhead, hugging-face; max-autotune compiles for more than a minute")
    parser.add_argument("--quantize", nargs="*", default=[None], type=lambda given: None if given in ("none", "bf16") else given)
    parser.add_argument("--head", default=None, help="to what the head is quantised, with --quantize")
    parser.add_argument("--cache-dtype", default=None)
    parser.add_argument("--batch", nargs="*", type=int, default=[1])
    parser.add_argument("--prompt", nargs="*", type=int, default=[64])
    parser.add_argument("--new", nargs="*", type=int, default=[512])
    parser.add_argument("--layers", type=int, default=None, help="fewer, for a quick look")
    parser.add_argument("--lookahead", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=600.0, help="begin nothing new after so many")
    parser.add_argument("--out", type=Path, default=None, help="a csv, written anew after each row")
    parser.add_argument("--append", action="store_true", help="keep the rows that the csv has")
    return parser


def bench(given: argparse.Namespace, device: torch.device, read_gb_per_s: float) -> list[dict]:
    """The rows that `given` asks for, one for each rung and peer, each printed and written to `given.out` when it is there."""
    import pandas

    from labkernels.lab.environment import environment

    started = time.perf_counter()
    rows = pandas.read_csv(given.out).to_dict("records") if given.out and given.append and given.out.exists() else []
    config = ModelConfig.preset(given.model, **({"num_layers": given.layers} if given.layers else {}))
    for quantize in given.quantize:
        model = random_model(config, torch.bfloat16, device, quantize, given.head)
        peers = given.peers if quantize is None else ()
        todo = [("ours", runner) for runner in given.runners] + [("peer", mode) for mode in peers]
        for (batch, prompt, new), (kind, name) in itertools.product(itertools.product(given.batch, given.prompt, given.new), todo):
            if time.perf_counter() - started > given.seconds:
                print("left out for time:", name, quantize, batch, prompt, new, flush=True)
                continue
            gc.collect()  # an engine and its graphs refer to each other: the last row's memory is none of this one's
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            try:
                found = _measure_ours(model, given, name, batch, prompt, new) if kind == "ours" else measure_peer(model, name, batch, prompt, new)
            except Exception as error:  # the other rows are of use without it
                print(f"{name} {quantize} batch {batch} prompt {prompt}: {type(error).__name__}: {str(error)[:300]}", flush=True)
                continue
            drawn = found.pop("drawn")
            row = {
                "model": given.model, "kind": kind, "runner": f"compiled {name}" if kind == "peer" and name in COMPILED else name,
                "weights": quantize or "bf16", "head": quantize and given.head or "bf16", "cache": given.cache_dtype or "bf16",
                "batch": batch, "prompt": prompt, "new": new, **found,
                "peak_gb": peer_peak_bytes(torch.cuda.max_memory_allocated(), model, name) / 1e9 if device.type == "cuda" else float("nan"),
            }  # fmt: skip
            options = {"quantize": quantize, "head": quantize and given.head, "cache_dtype": CACHE_DTYPES.get(given.cache_dtype)}
            options |= {"prefill_tokens": min(8192, batch * prompt), "on_gpu": device.type == "cuda"}
            row["estimate_gb"] = inference_memory(config, batch, _room(prompt, new), **options).peak / 1e9
            if "bytes_per_step" in row:
                row["share_of_limit"] = row["bytes_per_step"] / read_gb_per_s / 1e6 / row["ms_per_token"]
            rows.append(row | (environment() if device.type == "cuda" else {}))
            shown = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items() if key not in ("model", "cache", "new")}
            print(shown, "first tokens", drawn[0][:6], flush=True)
            if given.out:
                given.out.parent.mkdir(parents=True, exist_ok=True)
                pandas.DataFrame(rows).to_csv(given.out, index=False, float_format="%.6g")
        del model
    return rows


def _room(prompt: int, new: int) -> int:
    """Tokens of the cache for a sequence: whole pages, and one more."""
    return 64 * -(-(prompt + new + 64) // 64)


def _measure_ours(model: Transformer, given: argparse.Namespace, runner: str, batch: int, prompt: int, new: int) -> dict:
    new = new if runner not in ("naive", "cached") else min(new, 48)
    longest = min(model.config.max_seq_len, 64 * -(-(prompt + new) // 64))
    engine = Engine(
        model, runner=runner, max_batch=batch, max_seq_len=longest, cache_tokens=batch * _room(prompt, new),
        cache_dtype=given.cache_dtype, lookahead=given.lookahead, chunk_tokens=8192, share_prefixes=False,
    )  # fmt: skip
    found = measure(engine, batch, prompt, new) | {"new": new}
    found["launches"] = launches(engine) if engine.device.type == "cuda" else float("nan")
    found["bytes_per_step"] = read_bytes(model, batch, prompt + new / 2, engine.cache)
    return found


if __name__ == "__main__":
    main()
