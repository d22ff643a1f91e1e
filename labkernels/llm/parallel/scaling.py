"""How training scales over the GPUs of a machine, and how fast they send, beside what is estimated.

    torchrun --standalone --nproc-per-node 2 -m labkernels.llm.parallel.scaling --record data/measured/h200       some 100 s of 2 H200s

writes scaling_2.csv and collectives_2.csv, again after each row, those that matter most first.

Notable: weak scaling, every GPU takes the same batch whatever their number. What one GPU does is measured in the same run: "alone" with the
others idle, "apart" with all of them training each for itself, which shows what they take from each other without sending anything.
`efficiency` is tokens/s over those of as many GPUs alone. Milliseconds are of the slowest rank, by CUDA events, the median of the steps, on GPUs
that are warm. Bus bandwidth is the bytes that a ring has to send over the time, and so can be compared with a link's. A row that fails, or for
which the budget of time leaves no room, is told, and the next one is begun; one that does not end is ended with the job. On the CPU (gloo) it
runs, and records nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pandas
import torch
import torch.distributed as dist
import typer

from labkernels.errors import LabKernelsError
from labkernels.llm.parallel import traffic
from labkernels.llm.training.ablation import _heat, _mark, _milliseconds
from labkernels.llm.config import ModelConfig
from labkernels.llm.parallel.distributed import DistributedTrainer
from labkernels.llm.parallel.rank_watch import leave
from labkernels.llm.estimate import flops_per_token
from labkernels.llm.training.monitor import mfu, peak_tflops
from labkernels.llm.data.shards import TokenDataset
from labkernels.llm.training.train import TrainConfig, Trainer

WARM_UP = 4  # steps that are not timed
MODES = ("alone", "ddp", "fsdp", "tensor", "apart", "alone_fp8", "ddp_fp8")
ROWS = ("alone", "ddp", "collectives", "fsdp", "tensor", "alone_fp8", "ddp_fp8", "apart")
MEGABYTES = (1, 16, 64, 256, 1024)


def measure(mode: str, data: TokenDataset, steps: int, **changes: Any) -> dict[str, Any] | None:
    """A row; all ranks call it, rank 0 gets it, or None where it failed on one of them, which is told. `changes` to the TrainConfig."""
    ranks, rank, way = dist.get_world_size(), dist.get_rank(), mode.removesuffix("_fp8")
    spread = {"fsdp": {"parallel": "fsdp"}, "tensor": {"tensor_parallel": ranks}}.get(way, {})
    fp8 = {"fp8": "delayed", "precision": "bf16"} if way != mode else {}
    config = TrainConfig(**{"steps": WARM_UP + steps, "warmup": 1, "schedule": "constant", "lr": 3e-4, **changes, **spread, **fp8})
    numbers, failed = [0.0, 0.0, 0.0], 0.0
    try:
        if way != "alone" or rank == 0:
            numbers = _trained(Trainer if way in ("alone", "apart") else DistributedTrainer, config, data, steps)
    except Exception as error:  # the rows after this one are of use without it
        failed = 1.0
        print(f"{mode}: failed on rank {rank}: {type(error).__name__}: {str(error).strip()[:600]}", flush=True)
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    most = torch.tensor([*numbers, failed], dtype=torch.float64)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    elapsed_ms, peak_gb, loss, failed = most.tolist()
    if rank != 0 or failed:
        return None
    model, device = ModelConfig.preset(config.preset, **config.model), "cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu"
    seq_len = config.seq_len or model.max_seq_len
    tokens = config.batch_size * seq_len
    together = tokens * (1 if way in ("alone", "tensor") else ranks)
    rate, size = together / elapsed_ms * 1000, config.dtype
    sent = traffic.step_bytes(model, way, ranks, tokens, size) if way in traffic.MODES else 0.0
    return {
        "row": mode, "gpus": ranks, "batch": config.batch_size, "seq_len": seq_len, "tokens_per_s": rate, "ms_per_step": elapsed_ms,
        "mfu": mfu(rate / (1 if way == "alone" else ranks), flops_per_token(model, seq_len), peak_tflops(torch.device(device))),
        "peak_gb": peak_gb, "sent_gb_per_step": sent / 1e9, "loss": loss, "steps": steps,
    }  # fmt: skip


def _trained(kind: type[Trainer], config: TrainConfig, data: TokenDataset, steps: int) -> list[float]:
    trainer = kind(config, data)
    try:
        return _timed(trainer, steps)
    finally:
        trainer.loader.close()


def _timed(trainer: Trainer, steps: int) -> list[float]:
    """Milliseconds a step, peak GB, the last loss."""
    on_gpu = trainer.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer.model.train()
    for _ in range(WARM_UP):
        trainer.train_step()["numbers"].read()
    if on_gpu:
        _heat()
        trainer.clock(0.0)
    marks, loss = [_mark(on_gpu)], None
    for _ in range(steps):
        loss = trainer.train_step()["numbers"]
        trainer.clock(0.0)  # ranks agree once a step
        marks.append(_mark(on_gpu))
    last = loss.read()[0]
    times = [_milliseconds(a, b, on_gpu) for a, b in zip(marks, marks[1:])]
    return [statistics.median(times), torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0.0, last]


def measure_collectives(device: torch.device, megabytes=MEGABYTES, repeats: int = 10) -> list[dict[str, Any]]:
    """Milliseconds and bus bandwidth of each collective by the bytes of the whole tensor, bfloat16, on the default group."""
    ranks, on_gpu, rows = dist.get_world_size(), device.type == "cuda", []
    for size in megabytes:
        count = size * 2**20 // 2 // ranks * ranks
        whole = torch.ones(count, dtype=torch.bfloat16, device=device)
        part = torch.ones(count // ranks, dtype=torch.bfloat16, device=device)
        for name in traffic.COLLECTIVES:
            call = _collective(name, whole, part)
            whole.fill_(1), part.fill_(1)
            call()
            result = {"all_reduce": whole, "all_gather": whole, "reduce_scatter": part}[name]
            right = 1 if name == "all_gather" else ranks
            if not bool((result == right).all()):
                raise LabKernelsError(f"scaling: {name} of {size} MB gave {result.float().mean().item()}, not {right}")
            for _ in range(3):
                call()
            marks = [_mark(on_gpu)]
            for _ in range(repeats):
                call()
                marks.append(_mark(on_gpu))
            slowest = torch.tensor([statistics.median(_milliseconds(a, b, on_gpu) for a, b in zip(marks, marks[1:]))])
            dist.all_reduce(slowest, dist.ReduceOp.MAX)
            elapsed_ms, sent = slowest.item(), traffic.sent_bytes(name, count * 2, ranks)
            row = {"collective": name, "gpus": ranks, "mb": size, "ms": elapsed_ms, "sent_mb": sent / 2**20}
            rows.append(row | {"bus_gb_per_s": sent / elapsed_ms / 1e6})
    return rows


def _collective(name: str, whole: torch.Tensor, part: torch.Tensor) -> Callable[[], Any]:
    if name == "all_reduce":
        return lambda: dist.all_reduce(whole)
    if name == "all_gather":
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the name before torch 2.13
        return lambda: gather(whole, part)
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    return lambda: scatter(part, whole)


def main(
    record: Annotated[Path | None, typer.Option(help="write the rows into this folder; needs GPUs", file_okay=False)] = None,
    rows: Annotated[str, typer.Option(help=f"of {', '.join(ROWS)}, with commas between, in this order")] = ",".join(ROWS),
    budget: Annotated[float, typer.Option(help="seconds after which no other row is begun")] = 80.0,
    longest_row: Annotated[float, typer.Option(help="seconds after which a row that has not ended ends the job")] = 40.0,
    preset: Annotated[str, typer.Option(help="the model's shape")] = "645m",
    seq_len: Annotated[int, typer.Option(help="tokens of a sequence")] = 2048,
    batch_size: Annotated[int, typer.Option(help="sequences of each GPU's step")] = 16,
    steps: Annotated[int, typer.Option(help="timed steps of each row")] = 12,
    largest_mb: Annotated[int, typer.Option(help="the largest message of the collectives")] = 1024,
) -> None:
    """Measure how training scales over the GPUs that torchrun has started processes for."""
    if "RANK" not in os.environ:
        raise LabKernelsError("scaling: start it with torchrun --nproc-per-node GPUS -m labkernels.llm.parallel.scaling")
    if unknown := set(rows.split(",")) - set(ROWS):
        raise LabKernelsError(f"scaling: --rows has {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    begun, cuda = time.perf_counter(), torch.cuda.is_available()
    if record is not None and not cuda:
        raise LabKernelsError("scaling --record: figures are recorded on NVIDIA GPUs, and this machine has none")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    with _within(60.0, "the beginning"):
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=datetime.timedelta(seconds=longest_row + 20))
        data = _text(preset)
    first, vocabulary = dist.get_rank() == 0, ModelConfig.preset(preset).vocab_size
    changes = {"preset": preset, "seq_len": seq_len, "batch_size": batch_size, "model": {"vocab_size": vocabulary}, "device": str(device)}
    found: list[dict[str, Any]] = []
    kv_heads, gpus = ModelConfig.preset(preset).num_kv_heads, dist.get_world_size()
    for mode in rows.split(","):
        if mode == "tensor" and kv_heads % gpus:
            _say(first, f"tensor: left out, {kv_heads} KV heads do not divide by {gpus} ranks")
            continue
        spent = torch.tensor([time.perf_counter() - begun], dtype=torch.float64)
        dist.broadcast(spent, 0)  # the ranks decide alike
        if spent.item() > budget:
            _say(first, f"{mode}: left out, {spent.item():.0f} s were spent")
            continue
        with _within(longest_row, mode):
            if mode == "collectives":
                try:
                    collectives = measure_collectives(device, [size for size in MEGABYTES if size <= largest_mb])
                except (LabKernelsError, RuntimeError) as error:
                    _say(True, f"collectives: failed on rank {dist.get_rank()}: {str(error)[:600]}")
                    continue
                _write(record, f"collectives_{dist.get_world_size()}.csv", collectives, first)
                _say(first, pandas.DataFrame(collectives).to_string(index=False, float_format=lambda x: f"{x:.4g}"))
                continue
            row = measure(mode, data, steps, **changes)
        if row is not None:
            found.append(row)
            row["efficiency"] = efficiency(row, found)
            rate, elapsed_ms, share, peak_gb = (row[name] for name in ("tokens_per_s", "ms_per_step", "efficiency", "peak_gb"))
            took = time.perf_counter() - begun - spent.item()
            shown = f"{rate:.0f} tokens/s, {elapsed_ms:.1f} ms, efficiency {share:.3f}, {peak_gb:.1f} GB, loss {row['loss']:.3f}"
            _say(True, f"{mode}: {shown} ({took:.0f} s)")
            _write(record, f"scaling_{dist.get_world_size()}.csv", found, first)
    _say(first, "\n".join(disagreements(found)) or "rows of the same tokens end with the same loss")
    with _within(15.0, "the end"):
        dist.destroy_process_group()


@contextlib.contextmanager
def _within(seconds: float, what: str) -> Iterator[None]:
    """A block that ends this process after `seconds`: who waits for another rank's GPU kernel would wait for ever, and Python with it."""
    timer = threading.Timer(seconds, leave, [f"scaling: {what} has not ended after {seconds:.0f} s: the job ends, the rows before are written"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _text(preset: str) -> TokenDataset:
    from labkernels.llm.data.corpora import corpus
    from labkernels.llm.data.shards import prepare

    few = min(ModelConfig.preset(preset).vocab_size, 4096)  # words are found quickly; the model has all of its own
    return prepare(corpus("stdlib", max_bytes=8_000_000), few, progress=False)


def efficiency(row: dict[str, Any], rows: list[dict[str, Any]]) -> float:
    """tokens/s of `row` over those of as many GPUs alone, by the row of `rows` that did; nan where there is none."""
    fp8 = "_fp8" if row["row"].endswith("_fp8") else ""
    alone = next((one["tokens_per_s"] for one in rows if one["row"] == "alone" + fp8), float("nan"))
    return row["tokens_per_s"] / alone / (1 if row["row"].startswith("alone") else row["gpus"])


def disagreements(rows: list[dict[str, Any]], tolerance: float = 0.02) -> list[str]:
    """Rows that took in the same tokens and have other losses: one of them is wrong."""
    losses = {row["row"]: row["loss"] for row in rows}
    pairs = [(a, b) for a, b in (("ddp", "fsdp"), ("alone", "tensor"), ("alone", "apart")) if a in losses and b in losses]
    wrong = [(a, b) for a, b in pairs if not abs(losses[a] - losses[b]) <= tolerance * losses[a]]  # NaN is wrong, too
    return [f"WRONG: {b} ends with loss {losses[b]:.4f}, {a} with {losses[a]:.4f}" for a, b in wrong]


def _say(first: bool, text: str) -> None:
    if first:
        print(text, flush=True)


def _write(folder: Path | None, name: str, rows: list[dict[str, Any]], first: bool) -> None:
    if folder is not None and first:
        from labkernels.lab.environment import environment

        folder.mkdir(parents=True, exist_ok=True)
        pandas.DataFrame([row | environment() for row in rows]).to_csv(folder / name, index=False, float_format="%.6g")


if __name__ == "__main__":
    typer.run(main)
