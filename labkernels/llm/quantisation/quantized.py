"""Quantised models: made layer by layer on the way from a checkpoint to the device, saved, and loaded again.

Notable:
- one weight at a time is on the device in full: read, stacked (q, k, v), quantised, forgotten. A 7B checkpoint in float16 passes through 4.3 GB at int4
- what is quantised are the products of the layers; embedding and norms stay as they are, and so does the head, unless `head` says otherwise: of a small
  model with a large vocabulary it is half of what a token reads. A tied head is then a quantised copy of the embedding
- a quantised checkpoint is config.json, with a `quantization_config`, and safetensors files of this package's names; the largest is MAX_SHARD_BYTES
- a hub's name ("meta-llama/Llama-3.2-1B") is downloaded by huggingface_hub if there is a network; if not, the message says what to do
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from labkernels.errors import ArgumentError
from labkernels.llm import pretrained
from labkernels.llm.config import ModelConfig
from labkernels.llm.model import Transformer
from labkernels.llm.pretrained import PretrainedError
from labkernels.llm.survival.files import readable
from labkernels.nn import QuantLinear
from labkernels.quant import quantize as quantize_weight
from labkernels.quant.formats import FOUR_BIT, GROUP_SIZES

SCHEMES = ("int8", "fp8", "int4", "nf4")
QUANTISED = ("attention.qkv_proj", "attention.out_proj", "ffn.gate_up_proj", "ffn.up_proj", "ffn.down_proj")
METHOD = "labkernels"  # `quant_method` of a checkpoint that save_quantized wrote
MAX_SHARD_BYTES = 4 * 10**9
BESIDE = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja")


def load_model(
    folder_or_hub_id: str | os.PathLike, quantize: str | None = None, *, group_size: int | None = None, head: str | None = None, device=None,
    dtype: torch.dtype | None = None,
) -> tuple[Transformer, Path]:  # fmt: skip
    """The model of a folder or of a hub's name, ready to generate, and its folder. As Engine.from_pretrained. Raises ArgumentError, PretrainedError."""
    check_scheme(quantize, group_size, head)
    device = pretrained.place(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu", dtype)
    folder = local_folder(folder_or_hub_id)
    described = pretrained._json(folder / "config.json")
    if (found := described.get("quantization_config")) is not None:
        if found.get("quant_method") != METHOD:
            raise PretrainedError(
                f"{folder / 'config.json'}: quantised by {found.get('quant_method')!r}, which is not read; take the checkpoint that it was made of"
            )
        if quantize not in (None, found.get("scheme")):
            raise ArgumentError(f"from_pretrained: quantize is {quantize!r}, but {folder} is quantised already, to {found.get('scheme')}")
        return _load_quantized(folder, described, device, dtype), folder
    if quantize is None:
        return _plain(folder, described, device, dtype), folder
    return _quantize_on_the_way(folder, described, quantize, group_size, head, device, dtype), folder


def check_scheme(quantize: str | None, group_size: int | None = None, head: str | None = None) -> None:
    for name, scheme in (("quantize", quantize), ("head", head)):
        if scheme is not None and scheme not in SCHEMES:
            raise ArgumentError(f"from_pretrained: {name} is {scheme!r}; it must be None or one of {', '.join(map(repr, SCHEMES))}")
    if head is not None and quantize is None:
        raise ArgumentError(f"from_pretrained: head is {head!r}, and quantize None; the head alone is not quantised")
    if group_size is not None and quantize in SCHEMES and quantize not in FOUR_BIT:
        raise ArgumentError(f"from_pretrained: group_size is {group_size!r}; {quantize} has a scale for each row, and no groups")
    if group_size is not None and (quantize not in FOUR_BIT or group_size not in GROUP_SIZES):
        raise ArgumentError(f"from_pretrained: group_size is {group_size!r}; with int4 and nf4 it may be one of {', '.join(map(str, GROUP_SIZES))}")


def quantize_model(model: Transformer, quantize: str, group_size: int | None = None, head: str | None = None) -> Transformer:
    """`model` with the products of its layers quantised, in place, one after the other; and the head, to `head`."""
    check_scheme(quantize, group_size, head)
    for name, layer in list(model.named_modules()):
        if name.endswith(QUANTISED) and isinstance(layer, nn.Linear):
            _replace(model, name, QuantLinear.from_linear(layer, quantize, group_size))
    if head is not None:
        model.head = QuantLinear.from_weight(quantize_weight(model.head_weight.detach(), head))
    return model


def save_quantized(model: Transformer, folder: str | os.PathLike, source: str | os.PathLike | None = None) -> None:
    """Write a quantised model; with `source`, the folder it came from, its tokenizer's files, too. What was there is replaced at the end."""
    layers = [layer for layer in model.modules() if isinstance(layer, QuantLinear)]
    if not layers:
        raise ArgumentError("save_quantized: the model is not quantised; model.save_pretrained(folder) writes it")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(model.state_dict()))
    names = [f"quantized-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards):
        save_file({key: tensor.contiguous().cpu() for key, tensor in shard.items()}, folder / f"{name}.part", metadata={"format": "pt"})
        readable(folder / f"{name}.part")
    described = pretrained.config_to_hugging_face(model.config, model.embedding.weight.dtype)
    described["quantization_config"] = {
        "quant_method": METHOD, "scheme": layers[0].scheme, "group_size": layers[0].group_size, "files": names,
        "head": model.head.scheme if isinstance(model.head, QuantLinear) else None,
    }  # fmt: skip
    for name in names:
        os.replace(folder / f"{name}.part", folder / name)
    for old in folder.glob("quantized-*.safetensors"):
        if old.name not in names:
            old.unlink()
    for name in BESIDE:
        if source is not None and (Path(source) / name).is_file() and Path(source).resolve() != folder.resolve():
            shutil.copyfile(Path(source) / name, folder / name)
    pretrained._write_json(folder / "config.json", described)


def local_folder(folder_or_hub_id: str | os.PathLike) -> Path:
    """A folder as it is; a hub's name as the folder into which huggingface_hub put it. Raises PretrainedError with the way around."""
    folder = Path(folder_or_hub_id)
    if folder.is_dir():
        return folder
    name = str(folder_or_hub_id)
    if folder.exists():
        raise PretrainedError(f"{name} is a file; a model is a folder with config.json and its weights")
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise PretrainedError(f"{name}: there is no such folder, and it is no name of a hub's model, such as meta-llama/Llama-3.2-1B")
    around = f"without a network, download it elsewhere (`hf download {name} --local-dir FOLDER`) and give the folder"
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise PretrainedError(f"{name}: there is no such folder, and huggingface_hub, which downloads models, is not installed; {around}") from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))
    except Exception as error:  # of the network, of the hub, of access: dozens of classes of several libraries
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise PretrainedError(f"{name}: there is no such folder, and it cannot be downloaded ({type(error).__name__}: {reason}); {around}") from None


def _plain(folder: Path, described: dict, device: torch.device, dtype: torch.dtype | None) -> Transformer:
    model = pretrained.load(lambda config, given: Transformer(config, dtype=given), folder, device, dtype)
    if dtype is None and device.type == "cuda" and model.embedding.weight.dtype == torch.float32:
        model = model.to(torch.bfloat16)
    return model.requires_grad_(False)


def _quantize_on_the_way(folder: Path, described: dict, scheme: str, group_size, head, device: torch.device, dtype) -> Transformer:
    config = pretrained.config_from_hugging_face(described, str(folder / "config.json"))
    model = _on_meta(config, dtype)
    wanted, shards = pretrained.layout(config), pretrained._shards(folder)
    stored = pretrained._checked(shards, wanted, model, config)
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" and stored == torch.float32 else stored)
    file_of = {name: path for path, names in shards.items() for name in names}
    parts: dict[str, list[str]] = {}
    for theirs, part in wanted.items():
        parts.setdefault(part.parameter, []).append(theirs)
    for parameter, names in parts.items():
        whole = torch.empty(model.get_parameter(parameter).shape, dtype=dtype, device=device)
        for theirs in names:
            part = wanted[theirs]
            with pretrained._opened(file_of[theirs], str(device)) as file:
                whole[part.first : part.first + part.rows].copy_(file.get_tensor(theirs))
        layer = parameter.removesuffix(".weight")
        if layer.endswith(QUANTISED):
            _replace(model, layer, QuantLinear.from_weight(quantize_weight(whole, scheme, group_size)))
        elif layer == "head" and head is not None:
            model.head = QuantLinear.from_weight(quantize_weight(whole, head))
        else:
            model.get_submodule(layer).weight = nn.Parameter(whole, requires_grad=False)
        del whole
    if head is not None and model.head is None:
        model.head = QuantLinear.from_weight(quantize_weight(model.embedding.weight, head))
    return _finished(model, device)


def _load_quantized(folder: Path, described: dict, device: torch.device, dtype) -> Transformer:
    config, how = pretrained.config_from_hugging_face(described, str(folder / "config.json")), described["quantization_config"]
    if how.get("scheme") not in SCHEMES or how.get("head") not in (None, *SCHEMES) or not isinstance(how.get("files"), list):
        raise PretrainedError(f"{folder / 'config.json'}: quantization_config has scheme {how.get('scheme')!r} and files {how.get('files')!r}")
    model = _on_meta(config, dtype)
    for name, layer in list(model.named_modules()):
        if name.endswith(QUANTISED) and isinstance(layer, nn.Linear):
            made = QuantLinear(layer.in_features, layer.out_features, how["scheme"], how.get("group_size"), device="meta")
            _replace(model, name, made)
    if how.get("head") is not None:
        model.head = QuantLinear(config.embed_dim, config.vocab_size, how["head"], device="meta")
    expected, seen = model.state_dict(), set()
    for file_name in how["files"]:
        path = folder / str(file_name)
        if path.parent != folder or not path.is_file():
            raise PretrainedError(f"{path} is missing; config.json says that weights are in it")
        with pretrained._opened(path, str(device)) as file:
            for name in file.keys():
                tensor = file.get_tensor(name)
                if name not in expected:
                    raise PretrainedError(f"{path}: {name} belongs to no layer of the model that config.json describes")
                if tensor.shape != expected[name].shape:
                    raise PretrainedError(f"{path}: {name} has shape {tuple(tensor.shape)}; config.json makes it {tuple(expected[name].shape)}")
                _place(model, name, tensor, dtype)
                seen.add(name)
    if lacking := [name for name in expected if name not in seen]:
        raise PretrainedError(f"{folder}: {lacking[0]} is in no file" + (f", nor {len(lacking) - 1} others" if lacking[1:] else ""))
    return _finished(model, device)


def _place(model: Transformer, name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> None:
    module, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    if isinstance(module, QuantLinear):
        module._buffers[leaf] = tensor
    else:
        module.weight = nn.Parameter(tensor if dtype is None else tensor.to(dtype), requires_grad=False)


def _on_meta(config: ModelConfig, dtype) -> Transformer:
    with torch.device("meta"):
        return Transformer(config, dtype=dtype)


def _finished(model: Transformer, device: torch.device) -> Transformer:
    model.angles = model._angles(device)
    return model.requires_grad_(False).eval()


def _replace(model: Transformer, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)


def _shards(state: dict[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    shard, size = {}, 0
    for name, tensor in state.items():
        if shard and size + tensor.nbytes > MAX_SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def described_scheme(folder: str | os.PathLike) -> str | None:
    """To what a folder's checkpoint is quantised, or None, from config.json alone."""
    try:
        found = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")).get("quantization_config") or {}
    except (OSError, ValueError, AttributeError):
        return None
    return found.get("scheme") if found.get("quant_method") == METHOD else None
