"""A transformer as an ONNX file, for onnxruntime and whatever else reads the format.

    export(model, "model.onnx")                       # tokens (batch, seq) -> logits (batch, seq, vocab_size)
    export(model, "model.onnx", cache=True)           # with keys and values of the text so far, in and out
    difference(model, "model.onnx")                   # of onnxruntime's logits from the model's, at most

Notable: the model's own forward is traced, on PyTorch's operations, so there is no second definition to keep right. With a cache it is written anew, as it
must take keys and values from outside; inputs and outputs are named as Hugging Face's Optimum names them. All sequences of a batch are of one length.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from labkernels.errors import ArgumentError, LabKernelsError
from labkernels.llm import kernels as run
from labkernels.llm.model import Transformer
from labkernels.nn import QuantLinear

ONE_FILE_BYTES = 2**30  # larger weights lie in a file beside it, FILE.data: protobuf ends at 2 GB
DTYPES = (torch.float32, torch.float16)


class ExportError(LabKernelsError):
    """The model cannot be written as ONNX here, or what was written is not the model."""


class _Plain(nn.Module):
    """All the text, each time."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids)


class _Cached(nn.Module):
    """New tokens (batch, new), and of each layer the keys and values so far, (batch, kv_heads, past, head_dim), to logits and those with the new ones."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, past: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model, config = self.model, self.model.config
        new, before = input_ids.shape[1], past[0].shape[2]
        positions = torch.arange(new, device=input_ids.device) + before
        mask = torch.arange(before + new, device=input_ids.device) <= positions[:, None]  # (new, before + new)
        stream, present = model.embedding(input_ids), []
        for index, block in enumerate(model.blocks):
            attention = block.attention
            qkv = attention.qkv_proj(block.attention_norm(stream, "torch")).unflatten(-1, (-1, config.head_dim))
            q, k, v = qkv.split([config.num_heads, config.num_kv_heads, config.num_kv_heads], dim=2)  # (batch, new, heads, head_dim)
            if config.qk_norm:
                q, k = attention.q_norm(q, "torch"), attention.k_norm(k, "torch")
            q, k = run.rope("torch", q.transpose(1, 2), k.transpose(1, 2), model.angles, positions[None])
            k, v = (torch.cat(each, dim=2) for each in ((past[2 * index], k), (past[2 * index + 1], v.transpose(1, 2))))
            present += [k, v]
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=config.num_heads != config.num_kv_heads)
            stream = stream + attention.out_proj(out.transpose(1, 2).flatten(2))
            normed = block.ffn_norm(stream, "torch")
            stream = stream + run.ffn("torch", normed, block.ffn.gate_up_proj if config.gated else block.ffn.up_proj, block.ffn.down_proj, config.activation)
        return F.linear(model.norm(stream, "torch"), model.head_weight), present


@torch.no_grad()
def export(model: Transformer, path: str | os.PathLike, *, cache: bool = False, dtype: torch.dtype = torch.float32) -> Path:
    """Write `model` as `path`, its batch and lengths free, its weights in `dtype`, float32 or float16. Raises ArgumentError, ExportError.

    Inputs: input_ids (batch, seq) int64; with `cache` of each layer past_key_values.I.key and .value (batch, kv_heads, past, head_dim), past from 0.
    Outputs: logits (batch, seq, vocab_size); with `cache` present.I.key and .value. The model's `kernels` do not matter.
    """
    require("onnx", "onnxscript")
    path = Path(path)
    if dtype not in DTYPES:
        raise ArgumentError(f"export: dtype is {dtype}; it must be torch.float32 or torch.float16")
    if any(isinstance(layer, QuantLinear) for layer in model.modules()):
        raise ArgumentError("export: the model is quantised; give the one that it was made of, and quantise the ONNX file")
    if not path.parent.is_dir():
        raise ArgumentError(f"export: there is no folder {path.parent}")
    config = model.config
    traced = Transformer(config, device="meta")
    traced.load_state_dict({name: tensor.detach().to("cpu", dtype) for name, tensor in model.state_dict().items()}, assign=True)
    traced.angles = traced._angles("cpu")
    traced.requires_grad_(False).eval()
    batch, tokens = torch.export.Dim("batch", min=1), torch.zeros(2, 3, dtype=torch.int64)
    seq = torch.export.Dim("seq", min=1, max=max(2, config.max_seq_len))
    names = [f"{layer}.{part}" for layer in range(config.num_layers) for part in ("key", "value")]
    arguments, shapes, inputs, outputs = (tokens,), {"input_ids": {0: batch, 1: seq}}, ["input_ids"], ["logits"]
    if cache:
        past = [torch.zeros(2, config.num_kv_heads, 5, config.head_dim, dtype=dtype) for _ in names]
        length = torch.export.Dim("past", min=0, max=max(2, config.max_seq_len))
        arguments, shapes = (tokens, past), {**shapes, "past": [{0: batch, 2: length} for _ in names]}
        inputs, outputs = inputs + [f"past_key_values.{name}" for name in names], outputs + [f"present.{name}" for name in names]
    with _quiet():
        try:
            program = torch.onnx.export(
                (_Cached if cache else _Plain)(traced).eval(), arguments, dynamo=True, input_names=inputs, output_names=outputs,
                dynamic_shapes=shapes, verbose=False,
            )  # fmt: skip
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(f"export: torch.onnx cannot write this model: {str(error).strip().splitlines()[0]}") from error
        size = sum(tensor.nbytes for tensor in traced.state_dict().values())
        program.save(str(path), external_data=size > ONE_FILE_BYTES)
    return path


@torch.no_grad()
def difference(model: Transformer, path: str | os.PathLike, seed: int = 0) -> float:
    """The greatest difference of onnxruntime's logits from the model's own in float32, over the largest of those: for one token, several rows, and, if
    the file has a cache, text in pieces. Raises ExportError."""
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    config, generator = model.config, torch.Generator().manual_seed(seed)
    cached = len(session.get_inputs()) > 1
    longest, worst = min(33, config.max_seq_len), 0.0
    for batch, seq in ((1, 1), (1, longest), (3, max(1, longest // 2))):
        tokens = torch.randint(0, config.vocab_size, (batch, seq), generator=generator)
        want = model(tokens.to(model.embedding.weight.device)).float().cpu()
        if cached:
            got = in_pieces(session, tokens, [seq - seq // 2, seq // 3, seq // 2 - seq // 3])
        else:
            got = torch.from_numpy(session.run(None, {"input_ids": tokens.numpy()})[0])
        worst = max(worst, float((got.float() - want).abs().max() / want.abs().max().clamp(min=1.0)))
    return worst


def in_pieces(session, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """The logits of all tokens (batch, seq), taken `lengths` at a time by a session of a file with a cache."""
    numpy_type = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
    inputs = session.get_inputs()[1:]
    past = {each.name: torch.zeros(len(tokens), each.shape[1], 0, each.shape[3], dtype=numpy_type[each.type]).numpy() for each in inputs}
    found, start = [], 0
    for length in filter(None, lengths):
        logits, *present = session.run(None, {"input_ids": tokens[:, start : start + length].numpy(), **past})
        past, start = dict(zip(past, present, strict=True)), start + length
        found.append(torch.from_numpy(logits))
    return torch.cat(found, dim=1)


def require(*packages: str) -> None:
    """Raises ExportError with what to install."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise ExportError(f"ONNX: the package {package} is not installed; pip install 'labkernels[onnx]'") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of operators that this package has not, and of its own deprecations."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
