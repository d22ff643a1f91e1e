"""Hugging Face folders of Llama models, read and written: config.json beside one or many safetensors shards.

Notable: weights go from the file into their place in the stacked projections, one tensor at a time, so that a model is never there twice; every name and
shape is checked before the first number is read; whatever is wrong with a folder is told with the file and the tensor. Besides Llama itself, what
has its layers is read: Mistral without a window, and Qwen3 (QK-norm).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from labkernels.errors import ArgumentError, LabKernelsError
from labkernels.llm.config import ModelConfig
from labkernels.llm.survival.files import readable

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral", "Qwen3ForCausalLM": "qwen3"}
MAX_SHARD_BYTES = 5 * 10**9
SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


class PretrainedError(LabKernelsError):
    """A folder that should hold a model cannot be read; the text names the file and what is wrong with it."""


class Part(NamedTuple):
    """Where one tensor of a Hugging Face folder lies among a model's parameters: in these rows of this one."""

    parameter: str
    first: int
    rows: int


def layout(config: ModelConfig) -> dict[str, Part]:
    """Hugging Face's names of all tensors, and where each lies in this package's model."""
    if not config.gated:
        raise ArgumentError(f"layout: activation is {config.activation!r}; Hugging Face's Llama folders have \"swiglu\" alone")
    c, q_rows, kv_rows = config, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    found = {"model.embed_tokens.weight": Part("embedding.weight", 0, c.vocab_size)}
    for i in range(c.num_layers):
        theirs, ours = f"model.layers.{i}.", f"blocks.{i}."
        block = {
            "input_layernorm": Part("attention_norm", 0, c.embed_dim),
            "self_attn.q_proj": Part("attention.qkv_proj", 0, q_rows),
            "self_attn.k_proj": Part("attention.qkv_proj", q_rows, kv_rows),
            "self_attn.v_proj": Part("attention.qkv_proj", q_rows + kv_rows, kv_rows),
            "self_attn.o_proj": Part("attention.out_proj", 0, c.embed_dim),
            "post_attention_layernorm": Part("ffn_norm", 0, c.embed_dim),
            "mlp.gate_proj": Part("ffn.gate_up_proj", 0, c.ffn_dim),
            "mlp.up_proj": Part("ffn.gate_up_proj", c.ffn_dim, c.ffn_dim),
            "mlp.down_proj": Part("ffn.down_proj", 0, c.embed_dim),
        }
        if c.qk_norm:
            block |= {f"self_attn.{name}": Part(f"attention.{name}", 0, c.head_dim) for name in ("q_norm", "k_norm")}
        found |= {f"{theirs}{name}.weight": part._replace(parameter=f"{ours}{part.parameter}.weight") for name, part in block.items()}
    found["model.norm.weight"] = Part("norm.weight", 0, c.embed_dim)
    if not c.tie_embeddings:
        found["lm_head.weight"] = Part("head.weight", 0, c.vocab_size)
    return found


def config_from_hugging_face(given: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """The ModelConfig of a config.json's content. Raises PretrainedError for what this package's model is not."""
    names = given.get("architectures") or [next((name for name, kind in ARCHITECTURES.items() if kind == given.get("model_type")), None)]
    if names[0] not in ARCHITECTURES:
        raise PretrainedError(f"{where}: architectures is {given.get('architectures')!r}; this package reads {', '.join(ARCHITECTURES)}")
    rope = given.get("rope_parameters") or {}  # where transformers 5 keeps what rope_theta and rope_scaling were
    scaling = given.get("rope_scaling") or {name: value for name, value in rope.items() if name != "rope_theta"}
    plain = not scaling or scaling.get("rope_type", scaling.get("type")) == "default"
    _refuse(given, where, "hidden_act", ("silu",))
    for name in ("attention_bias", "mlp_bias", "use_sliding_window"):
        _refuse(given, where, name, (False, None))
    if names[0] == "MistralForCausalLM":
        _refuse(given, where, "sliding_window", (None,))
    try:
        return ModelConfig(
            vocab_size=given["vocab_size"],
            embed_dim=given["hidden_size"],
            num_layers=given["num_hidden_layers"],
            num_heads=given["num_attention_heads"],
            num_kv_heads=given.get("num_key_value_heads") or given["num_attention_heads"],
            ffn_dim=given["intermediate_size"],
            head_dim=given.get("head_dim") or (128 if names[0] == "Qwen3ForCausalLM" else None),
            max_seq_len=given.get("max_position_embeddings", 2048),
            rope_theta=float(given.get("rope_theta") or rope.get("rope_theta") or 10_000.0),
            rope_scaling=None if plain else dict(scaling),
            norm_eps=given.get("rms_norm_eps", 1e-6),
            qk_norm=names[0] == "Qwen3ForCausalLM",
            tie_embeddings=given.get("tie_word_embeddings", False),
        )
    except KeyError as missing:
        raise PretrainedError(f"{where}: {missing} is missing") from None
    except ArgumentError as wrong:
        raise PretrainedError(f"{where}: {wrong}") from None


def config_to_hugging_face(config: ModelConfig, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The content of a config.json that transformers reads, in versions 4 and 5."""
    name = "Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM"
    c = config
    return {
        "architectures": [name], "model_type": ARCHITECTURES[name], "vocab_size": c.vocab_size, "hidden_size": c.embed_dim,
        "num_hidden_layers": c.num_layers, "num_attention_heads": c.num_heads, "num_key_value_heads": c.num_kv_heads, "head_dim": c.head_dim,
        "intermediate_size": c.ffn_dim, "hidden_act": "silu", "max_position_embeddings": c.max_seq_len, "rope_theta": c.rope_theta,
        "rope_scaling": c.rope_scaling, "rms_norm_eps": c.norm_eps, "tie_word_embeddings": c.tie_embeddings, "attention_bias": False, "mlp_bias": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }  # fmt: skip


def place(device: torch.device | str, dtype: torch.dtype | None) -> torch.device:
    """The device for a model of this dtype (None: the file's). Raises ArgumentError for one that is none or not there."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ArgumentError(f"from_pretrained: device is {device!r}; it must be 'cpu', 'cuda' or 'cuda:NUMBER'") from None
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found.type == "cuda" and (found.index or 0) >= gpus:
        raise ArgumentError(f"from_pretrained: device is {str(device)!r}, and torch sees {gpus or 'no'} NVIDIA GPUs here")
    if dtype not in (None, torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise ArgumentError(f"from_pretrained: dtype is {dtype!r}; it must be torch.bfloat16, torch.float16, torch.float32 or None, the file's")
    return found


def load(build, folder: str | os.PathLike, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """The model in `folder`: build(config, dtype), made on "meta", with its weights on `device`, in `dtype`, or else as the file has them."""
    folder, device = Path(folder), place("cpu" if device is None else device, dtype)
    config = config_from_hugging_face(_json(folder / "config.json"), str(folder / "config.json"))
    wanted, shards = layout(config), _shards(folder)
    with torch.device("meta"):
        model = build(config, dtype)
    stored = _checked(shards, wanted, model, config)
    model = model.to(dtype or stored).to_empty(device=device)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for path, names in shards.items():
            with _opened(path, str(device)) as file:
                for name in names:
                    if part := wanted.get(name):
                        parameters[part.parameter][part.first : part.first + part.rows].copy_(file.get_tensor(name))
    return model


def save(model: torch.nn.Module, folder: str | os.PathLike, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """config.json and the weights, in shards of at most `max_shard_bytes` (a larger tensor has one for itself). What was there is replaced at the end."""
    if isinstance(max_shard_bytes, bool) or not isinstance(max_shard_bytes, int) or max_shard_bytes < 1:
        raise ArgumentError(f"save_pretrained: max_shard_bytes is {max_shard_bytes!r}; it must be an int of at least 1")
    folder, parameters = Path(folder), dict(model.named_parameters())
    wanted = layout(model.config)
    if lacking := [part.parameter for part in wanted.values() if part.parameter not in parameters]:
        raise ArgumentError(f"save_pretrained: the model has no {lacking[0]}; if it is quantised, labkernels.llm.quantisation.quantized.save_quantized writes it")
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_split(wanted, parameters, max_shard_bytes))
    names = [WEIGHTS] if len(shards) == 1 else [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards):
        tensors = {theirs: _rows(parameters, wanted[theirs]).detach().contiguous().cpu() for theirs in shard}
        save_file(tensors, folder / f"{name}.part", metadata={"format": "pt"})
        readable(folder / f"{name}.part")
    for old in (*folder.glob("model*.safetensors"), folder / INDEX):
        old.unlink(missing_ok=True)
    for name in names:
        os.replace(folder / f"{name}.part", folder / name)
    if len(shards) > 1:
        total = sum(_bytes(parameters, wanted[theirs]) for theirs in wanted)
        index = {"metadata": {"total_size": total}, "weight_map": {theirs: name for name, shard in zip(names, shards) for theirs in shard}}
        _write_json(folder / INDEX, index)
    _write_json(folder / "config.json", config_to_hugging_face(model.config, next(iter(parameters.values())).dtype))


def _split(wanted: dict[str, Part], parameters, most: int) -> Iterator[list[str]]:
    shard, size = [], 0
    for name, part in wanted.items():
        own = _bytes(parameters, part)
        if shard and size + own > most:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += own
    yield shard


def _rows(parameters, part: Part) -> torch.Tensor:
    return parameters[part.parameter][part.first : part.first + part.rows]


def _bytes(parameters, part: Part) -> int:
    return _rows(parameters, part).numel() * parameters[part.parameter].element_size()


def _shards(folder: Path) -> dict[Path, list[str]]:
    """Each file with weights, and the names in it."""
    if (folder / INDEX).exists():
        index = _json(folder / INDEX)
        if not isinstance(index.get("weight_map"), dict):
            raise PretrainedError(f"{folder / INDEX}: weight_map is missing")
        found: dict[Path, list[str]] = {}
        for name, file in index["weight_map"].items():
            if not isinstance(file, str) or Path(file).name != file:
                raise PretrainedError(f"{folder / INDEX}: {name} is in {file!r}; it must be the name of a file beside the index")
            found.setdefault(folder / file, []).append(name)
        for path, names in found.items():
            if not path.exists():
                raise PretrainedError(f"{path} is missing; {INDEX} says that it holds {len(names)} tensors")
            if lacking := set(names) - set(_names(path)):
                raise PretrainedError(f"{path}: {sorted(lacking)[0]} is not in it, though {INDEX} says so")
        return found
    if not (folder / WEIGHTS).exists():
        pickled = any(folder.glob("pytorch_model*.bin"))
        raise PretrainedError(f"{folder / WEIGHTS} is missing" + ("; pickled weights (pytorch_model.bin) are not read" if pickled else ""))
    return {folder / WEIGHTS: _names(folder / WEIGHTS)}


def _checked(shards: dict[Path, list[str]], wanted: dict[str, Part], model, config: ModelConfig) -> torch.dtype:
    """The dtype of the weights, once every name and shape is found to be right."""
    parameters, seen, dtype = dict(model.named_parameters()), set(), None
    for path, names in shards.items():
        with _opened(path) as file:
            for name in names:
                part = wanted.get(name)
                if part is None:
                    if name.endswith("rotary_emb.inv_freq") or name == "lm_head.weight" and config.tie_embeddings:
                        continue  # follow from config.json
                    raise PretrainedError(f"{path}: {name} belongs to no layer of the model that config.json describes")
                entry = file.get_slice(name)
                shape, right = tuple(entry.get_shape()), (part.rows, *parameters[part.parameter].shape[1:])
                if shape != right:
                    raise PretrainedError(f"{path}: {name} has shape {shape}; config.json makes it {right}")
                if entry.get_dtype() not in SAFETENSORS_DTYPES:
                    raise PretrainedError(f"{path}: {name} is {entry.get_dtype()}; weights must be one of {', '.join(SAFETENSORS_DTYPES)}")
                dtype = dtype or SAFETENSORS_DTYPES[entry.get_dtype()]
                seen.add(name)
    if lacking := [name for name in wanted if name not in seen]:
        raise PretrainedError(f"{next(iter(shards)).parent}: {lacking[0]} is in no shard" + (f", nor {len(lacking) - 1} others" if lacking[1:] else ""))
    return dtype


def _opened(path: Path, device: str = "cpu"):
    try:
        here = f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device  # safetensors takes "cuda" for the first GPU
        return safe_open(path, framework="pt", device=here)
    except (SafetensorError, OSError) as wrong:
        raise PretrainedError(f"{path}: not a whole safetensors file ({path.stat().st_size} bytes): {wrong}") from None


def _names(path: Path) -> list[str]:
    with _opened(path) as file:
        return list(file.keys())


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PretrainedError(_missing(path)) from None
    except ValueError as wrong:
        raise PretrainedError(f"{path}: not JSON: {wrong}") from None
    if not isinstance(found, dict):
        raise PretrainedError(f"{path}: it must hold a JSON object, not a {type(found).__name__}")
    return found


def _missing(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{folder}: there is no such folder" + ("" if folder.is_absolute() else f" in {Path.cwd()}")
    return f"{path} is missing" + (f"; the model that was trained there is {folder / 'model'}" if (folder / "model" / path.name).is_file() else "")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def _refuse(given: Mapping[str, Any], where: str, name: str, allowed: tuple) -> None:
    if name in given and given[name] not in allowed:
        raise PretrainedError(f"{where}: {name} is {given[name]!r}; this package's model has {name} = {allowed[0]!r}")
