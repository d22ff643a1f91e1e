"""The ablation ladder of training: each row is one optimisation added to the rows before, all in one process, on the same tokens.

    python -m labkernels.llm.training.ablation --record data/measured/h200             about five minutes of an H200; writes training.csv
    python -m labkernels.llm.training.ablation --rows bf16,compiled --preset 10m       some rows, shown

Notable: tokens/s is the median of the last steps by CUDA events, on a GPU that is warm; the loss is that of the last step, after equal tokens from equal weights;
Hugging Face's rows have the same shape, weights, tokens and loss. Rows that find no room are told, and so are those that the budget of
time left out: the rows that matter most are measured first. Each row warms up by compiling; what was compiled before is kept by PyTorch's
cache.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pandas
import torch
import typer
from torch.nn.attention import SDPBackend, sdpa_kernel

from labkernels.errors import LabKernelsError
from labkernels.llm import estimate
from labkernels.llm.training.ablation_peers import PEERS, hugging_face
from labkernels.llm.config import ModelConfig
from labkernels.llm.training.monitor import mfu, peak_tflops
from labkernels.llm.data.shards import TokenDataset
from labkernels.llm.training.train import TrainConfig, Trainer
from labkernels.llm.training.train_parts import CUBLAS, FASTEST, FUSED, OURS

WARM_UP = 3  # steps that are not timed
HEAT_MS = 1000.0  # of work before those that are
LEARNING_RATE, WEIGHT_DECAY = 3e-4, 0.1


@dataclass(frozen=True)
class Row:
    """A row of the ladder. `changes` to the TrainConfig, beside those of `base` and of what that stands on."""

    name: str
    adds: str
    base: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    attention: SDPBackend | None = None  # PyTorch's, where it is not left to PyTorch
    urgency: int = 5  # rows of small numbers are measured first


_NAIVE = {"accumulate": 8, "batch_size": 2}  # all scores of a sequence are kept: more than two do not fit
_BARE = {"master": "stochastic", "moments": "bf16"}  # as much a weight as PyTorch's AdamW keeps for bfloat16 weights: what Hugging Face's rows have
_ATTENTION = {"rope": "labkernels", "attention": "labkernels"}
LADDER = {
    row.name: row
    for row in (
        Row("float32", "eager PyTorch, float32, attention by its formula", None,
            {"precision": "float32", "optimizer": "adamw-torch", "kernels": "torch", "compile": "none", **_NAIVE}, SDPBackend.MATH, 9),
        Row("bf16", "bfloat16 weights, activations and gradients", "float32", {"precision": "bf16"}, SDPBackend.MATH, 7),
        Row("compiled", "torch.compile of the blocks", "bf16", {"compile": "blocks"}, SDPBackend.MATH, 6),
        Row("fused_adamw", "AdamW in one kernel, with float32 masters", "compiled", {"optimizer": "adamw"}, SDPBackend.MATH, 6),
        Row("flash", "attention without scores in memory: PyTorch's", "fused_adamw", {"accumulate": 1, "batch_size": 16}, None, 3),
        Row("our_attention", "rotation and attention as one operator, by our kernels", "flash", {"kernels": _ATTENTION}, None, 3),
        Row("our_loss", "head and cross-entropy in chunks", "our_attention", {"kernels": _ATTENTION | {"loss": "labkernels"}}, None, 3),
        Row("our_kernels", "products, norms, SwiGLU and embedding by our kernels, too", "our_loss", {"kernels": OURS}, None, 2),
        Row("cublas", "products of the layers by cuBLAS again, the rest ours", "our_kernels", {"kernels": CUBLAS}, None, 0),
        Row("fused_products", "SwiGLU and RoPE by the products that make their sums, ours", "cublas", {"kernels": FUSED}, None, 1),
        Row("cudnn_attention", "attention's forward pass by cuDNN", "fused_products", {"kernels": FASTEST}, None, 1),
        Row("stochastic", "no masters: stochastic rounding, bfloat16 moments", "cudnn_attention", _BARE, None, 0),
        Row("kept", "the hidden layer kept for the backward pass", "stochastic", {"kernels": FASTEST | {"activation": "kept"}}, None, 1),
        Row("selective", "selective activation checkpointing", "cudnn_attention", {"checkpointing": "selective"}, None, 4),
        Row("full", "full activation checkpointing", "cudnn_attention", {"checkpointing": "full"}, None, 4),
        Row("fp8", "products of the layers in fp8, scales of the steps before", "cudnn_attention", {"fp8": "delayed"}, None, 0),
        Row("fp8_stochastic", "fp8, and no masters", "fp8", _BARE, None, 1),
        Row("fp8_tensor", "fp8, a scale a tensor, found anew in each step", "cudnn_attention", {"fp8": "tensor"}, None, 5),
        Row("fp8_rows", "fp8, a scale a row, found anew in each step", "cudnn_attention", {"fp8": "row"}, None, 5),
        Row("muon", "Muon for the blocks' matrices", "cudnn_attention", {"optimizer": "muon"}, None, 2),
    )
}  # fmt: skip
PEER_ROWS = {
    "hf_eager": Row("hf_eager", "Hugging Face, eager", urgency=4),
    "hf_compiled": Row("hf_compiled", "Hugging Face, torch.compile of the model, causal mask mended", urgency=4),
    "hf_compiled_layers": Row("hf_compiled_layers", "the same, its layers and its loss compiled each for itself", urgency=0),
    "hf_liger": Row("hf_liger", "Hugging Face with Liger's kernels", urgency=0),
}
_7B = {**_BARE, "checkpointing": "selective", "compile": "blocks", "kernels": FASTEST, "optimizer": "adamw"}
SHAPES = {  # other shapes that fit one GPU: name -> (preset, seq_len, what is trained)
    "730m": ("730m", 384, Row("730m", "730M: 40 x 384 tokens, as published for an RTX 4070 Ti", None,
        {"batch_size": 40, "compile": "blocks", "kernels": FASTEST, "optimizer": "adamw"}, None, 3)),
    "llama-2-7b": ("llama-2-7b", 2048, Row("llama-2-7b", "Llama 2 7B: 4 x 2048 tokens, weights and moments bfloat16", None, {"batch_size": 4, **_7B}, None, 3)),
    "llama-2-7b_batch_32": ("llama-2-7b", 256, Row("llama-2-7b_batch_32", "Llama 2 7B: 32 x 256 tokens", None, {"batch_size": 32, **_7B}, None, 4)),
}  # fmt: skip
ROWS = {**PEER_ROWS, **LADDER, **{name: row for name, (_, _, row) in SHAPES.items()}}


def options_of(row: Row) -> dict[str, Any]:
    """The TrainConfig's fields of a row: its own over those of the rows it stands on."""
    below = options_of(LADDER[row.base]) if row.base else {}
    return below | row.changes


def measure(
    name: str, data: TokenDataset, preset: str = "645m", seq_len: int = 2048, steps: int = 12, device: str = "auto", **changes: Any
) -> dict[str, Any]:
    """One row: tokens/s, milliseconds a step, MFU, peak memory, the loss after `steps`. `changes` to every row's TrainConfig, as batch_size."""
    row = ROWS[name]
    if name in SHAPES:
        preset, seq_len, _ = SHAPES[name]
    options = {} if name in PEERS else options_of(row)
    options = options | changes
    config = TrainConfig(
        preset=preset, seq_len=seq_len, steps=steps, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, warmup=1, schedule="constant", clip=0.0,
        device=device, **({"batch_size": 16, "kernels": "torch", "compile": "none"} | options),
    )  # fmt: skip
    trainer = Trainer(config, data)
    on_gpu = trainer.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    step = _peer_step(name, trainer) if name in PEERS else _own_step(trainer)
    if on_gpu and name in PEERS:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    marks, loss = [], torch.zeros(())
    begun = time.perf_counter()
    with sdpa_kernel(row.attention) if row.attention is not None and on_gpu else contextlib.nullcontext():
        for number in range(steps):
            if number == min(WARM_UP, steps - 1):
                if on_gpu:
                    _heat()
                marks.append(_mark(on_gpu))
            loss = step()
            if marks:
                marks.append(_mark(on_gpu))
    loss = float(loss)
    times = [_milliseconds(a, b, on_gpu) for a, b in zip(marks, marks[1:])]
    trainer.loader.close()
    elapsed_ms = statistics.median(times)
    tokens = config.batch_size * config.accumulate * seq_len
    flops = estimate.flops_per_token(trainer.model.config, seq_len)
    rate = tokens / elapsed_ms * 1000
    return {
        "row": name, "adds": row.adds, "base": row.base or "", "preset": preset, "batch": config.batch_size * config.accumulate, "seq_len": seq_len,
        "tokens_per_s": rate, "ms_per_step": elapsed_ms, "mfu": mfu(rate, flops, peak_tflops(trainer.device)),
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
        "loss": loss, "steps": steps, "warm_up_s": time.perf_counter() - begun - (sum(times) + on_gpu * HEAT_MS) / 1000, "note": "",
    }  # fmt: skip


def _own_step(trainer: Trainer):
    trainer.model.train()
    return lambda: trainer.train_step()["numbers"].tensor()[0]


def _peer_step(name: str, trainer: Trainer):
    """With the weights that our rows begin with; our own model goes."""
    step, loader = hugging_face(name, trainer.model, LEARNING_RATE, WEIGHT_DECAY), trainer.loader
    trainer.optimizers.clear()
    trainer.forward = None
    trainer.model.to_empty(device="meta")

    def one() -> torch.Tensor:
        batch = next(loader)
        return step(batch.inputs, batch.targets)

    return one


def _heat() -> None:
    """HEAT_MS of products: a GPU at its power limit is 3% slower when it is warm, and rows that compiled for long would begin cool."""
    a = torch.ones(8192, 8192, device="cuda", dtype=torch.bfloat16).normal_()
    begin = _mark(True)
    while _milliseconds(begin, _mark(True), True) < HEAT_MS:
        for _ in range(50):
            torch.mm(a, a)


def _mark(on_gpu: bool):
    if not on_gpu:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _milliseconds(a, b, on_gpu: bool) -> float:
    if not on_gpu:
        return (b - a) * 1000
    b.synchronize()
    return a.elapsed_time(b)


def measure_all(
    names: list[str], data: dict[str, TokenDataset], budget_s: float, say=print, done=lambda rows: None, **options: Any
) -> list[dict[str, Any]]:
    """Rows by name, the urgent ones first, until the budget is spent; given back in the ladder's order. `done` is called with the rows after each."""
    begun, found = time.perf_counter(), {}
    for name in sorted(names, key=lambda one: ROWS[one].urgency):
        left = budget_s - (time.perf_counter() - begun)
        if left < 0:
            found[name] = _left_out(name, f"left out: {budget_s:.0f} s were spent")
        else:
            try:
                found[name] = measure(name, data.get(name) or data["all"], **options)
            except torch.OutOfMemoryError:
                found[name] = _left_out(name, "out of memory")
            except (ImportError, LabKernelsError, RuntimeError) as error:
                found[name] = _left_out(name, f"failed: {str(error).strip().splitlines()[0][:200]}")
        row = found[name]
        say(f"{name}: {row['note']}" if row["note"] else f"{name}: {row['tokens_per_s']:.0f} tokens/s, loss {row['loss']:.3f}")
        _forget()
        done([found[one] for one in ROWS if one in found])
    return [found[name] for name in ROWS if name in found]


def _left_out(name: str, why: str) -> dict[str, Any]:
    return {"row": name, "adds": ROWS[name].adds, "base": ROWS[name].base or "", "note": why}


def _forget() -> None:
    """Nothing of a row stays, neither memory nor compiled graphs."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(
    record: Annotated[Path | None, typer.Option(help="write training.csv into this folder; needs a GPU", file_okay=False)] = None,
    rows: Annotated[str, typer.Option(help=f"rows by name, with commas between; there are {', '.join(ROWS)}")] = ",".join(ROWS),
    budget: Annotated[float, typer.Option(help="seconds after which no other row is begun")] = 400.0,
    preset: Annotated[str, typer.Option(help="the model's shape, of rows that have none of their own")] = "645m",
    seq_len: Annotated[int, typer.Option(help="tokens of a sequence, of rows that have no shape of their own")] = 2048,
    batch_size: Annotated[int | None, typer.Option(help="sequences of a step, of all rows; default: 16 at 645m, and what a shape says")] = None,
    steps: Annotated[int, typer.Option(help="of each row; the loss is that after so many")] = 12,
    corpus: Annotated[str, typer.Option(help="text to train on")] = "stdlib",
) -> None:
    """Measure the rows of the ladder, and show or record them."""
    from labkernels.llm.data.corpora import corpus as find
    from labkernels.llm.data.shards import prepare

    if record is not None and not torch.cuda.is_available():
        raise LabKernelsError("ablation --record: figures are recorded on an NVIDIA GPU, and this machine has none")
    begun, names, source = time.perf_counter(), rows.split(","), find(corpus)
    data = {"all": prepare(source, ModelConfig.preset(preset).vocab_size)}
    changes = {} if batch_size is None else {"batch_size": batch_size, "accumulate": 1}

    def write(found: list[dict[str, Any]]) -> None:
        if record is not None:
            from labkernels.lab.environment import environment

            record.mkdir(parents=True, exist_ok=True)
            pandas.DataFrame([row | environment() for row in found]).to_csv(record / "training.csv", index=False, float_format="%.6g")

    budget -= time.perf_counter() - begun
    found = measure_all(names, data, budget, lambda text: print(text, flush=True), write, preset=preset, seq_len=seq_len, steps=steps, **changes)
    table = pandas.DataFrame(found).drop(columns=["base", "note", "adds"], errors="ignore")
    print(table.to_string(index=False, float_format=lambda x: f"{x:.4g}"))


if __name__ == "__main__":
    typer.run(main)
