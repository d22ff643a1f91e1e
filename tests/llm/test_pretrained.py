"""Hugging Face folders: transformers' models and ours give the same logits, both ways, and what is wrong with a folder is said."""

import json
import os

import pytest
import torch

from labkernels.errors import ArgumentError
from labkernels.llm.config import ModelConfig
from labkernels.llm.inference.engine import Engine
from labkernels.llm.model import Transformer
from labkernels.llm.pretrained import INDEX, WEIGHTS, PretrainedError, config_from_hugging_face
from labkernels.llm.quantisation.quantized import quantize_model

os.environ.setdefault("HF_HUB_OFFLINE", "1")
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
TINY = {
    "vocab_size": 101, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
CONFIGURATIONS = {
    "grouped": {},
    "as many key heads as query heads": {"num_key_value_heads": 4},
    "one key head": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 16},
    "narrow heads, odd sizes": {"head_dim": 6, "hidden_size": 36, "intermediate_size": 23},
    "Llama 3 scaling": {"rope_scaling": LLAMA3, "rope_theta": 500_000.0},
    "Llama 3 scaling, tied, grouped by 4": {"rope_scaling": LLAMA3, "tie_word_embeddings": True, "num_key_value_heads": 1},
    "linear scaling": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "another theta": {"rope_theta": 300.0},
    "large eps": {"rms_norm_eps": 0.1},
    "one layer, six query heads": {"num_hidden_layers": 1, "num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 48},
    "five layers": {"num_hidden_layers": 5},
    "QK-norm": {"kind": "qwen3", "head_dim": 8},
    "QK-norm, tied, wide heads": {"kind": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
}


def theirs(kind="llama", **changes):
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    config, model = (LlamaConfig, LlamaForCausalLM) if kind == "llama" else (Qwen3Config, Qwen3ForCausalLM)
    torch.manual_seed(0)
    found = model(config(**TINY | changes)).eval()
    with torch.no_grad():
        for name, weight in found.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)  # else a norm left out, or another one's, would not be noticed
    return found


def tokens(batch=2, seq=40):
    return torch.randint(TINY["vocab_size"], (batch, seq), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_logits_agree_with_transformers_reading_and_writing(name, tmp_path):
    changes = CONFIGURATIONS[name]
    reference = theirs(**changes)
    reference.save_pretrained(tmp_path / "theirs")
    model = Transformer.from_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        want, got = reference(tokens()).logits, model(tokens())
    assert want.std() > 0.3
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)

    model.save_pretrained(tmp_path / "ours", max_shard_bytes=20_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    back = type(reference).from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(back(tokens()).logits, want, atol=1e-4, rtol=1e-4)
    assert config_from_hugging_face(back.config.to_dict() | {"architectures": [type(reference).__name__]}) == model.config


def test_another_theta_is_noticed(tmp_path):
    """A mistake that this file must find: positions turned by other angles."""
    reference = theirs()
    reference.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_theta": 9_000.0, "rope_parameters": None}))
    with torch.no_grad():
        assert (Transformer.from_pretrained(tmp_path)(tokens()) - reference(tokens()).logits).abs().max() > 1e-2


@pytest.fixture
def folder(tmp_path):
    """A folder in several shards."""
    theirs().save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / INDEX).exists()
    return tmp_path


def test_shards_made_by_transformers_are_read(folder):
    with torch.no_grad():
        torch.testing.assert_close(Transformer.from_pretrained(folder)(tokens()), theirs()(tokens()).logits, atol=1e-4, rtol=1e-4)


def test_dtype_is_the_files_unless_given(tmp_path):
    theirs().to(torch.bfloat16).save_pretrained(tmp_path)
    model = Transformer.from_pretrained(tmp_path)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16} and model.angles.dtype == torch.float32
    assert Transformer.from_pretrained(tmp_path, dtype=torch.float32).norm.weight.dtype == torch.float32


def test_saving_again_leaves_no_stale_shards(tmp_path):
    model = Transformer(ModelConfig(vocab_size=50, embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, ffn_dim=24))
    model.save_pretrained(tmp_path, max_shard_bytes=2000)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", WEIGHTS]
    for name, weight in Transformer.from_pretrained(tmp_path).named_parameters():
        assert torch.equal(weight, model.get_parameter(name)), name


def test_a_quantised_model_is_not_written_as_a_plain_one(tmp_path):
    model = quantize_model(Transformer(ModelConfig.preset("10m", vocab_size=64, num_layers=1)), "int8")
    with pytest.raises(ArgumentError, match="has no blocks.0.attention.qkv_proj.weight; if it is quantised, .*save_quantized"):
        model.save_pretrained(tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_a_model_without_a_gate_is_not_written(tmp_path):
    model = Transformer(ModelConfig(vocab_size=50, embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, ffn_dim=24, activation="gelu"))
    with pytest.raises(ArgumentError, match="activation is 'gelu'"):
        model.save_pretrained(tmp_path)


def edited(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shard(folder):
    return sorted(folder.glob("*.safetensors"))[1]


def indexed(folder, file):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = file
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "given, message",
    [
        ({"device": "tpu"}, "device is 'tpu'; it must be 'cpu', 'cuda' or 'cuda:NUMBER'"),
        ({"device": "cuda"}, "device is 'cuda', and torch sees no NVIDIA GPUs here"),
        ({"dtype": "bf16"}, "dtype is 'bf16'; it must be torch.bfloat16"),
        ({"dtype": torch.int8}, "dtype is torch.int8"),
    ],
)
def test_a_device_or_dtype_that_cannot_be_is_named(given, message, folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for read in (Transformer.from_pretrained, Engine.from_pretrained):
        with pytest.raises(ArgumentError, match=message):
            read(folder, **given)


BROKEN = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json: not JSON"),
    "unknown architecture": (lambda f: edited(f, architectures=["MambaForCausalLM"]), "architectures is .*Mamba.*LlamaForCausalLM"),
    "biases": (lambda f: edited(f, attention_bias=True), "attention_bias is True"),
    "another activation": (lambda f: edited(f, hidden_act="gelu"), "hidden_act is 'gelu'"),
    "scaling that nobody knows": (lambda f: edited(f, rope_scaling={"rope_type": "yarn", "factor": 2.0}), "config.json: .*yarn"),
    "heads that do not divide": (lambda f: edited(f, num_key_value_heads=3), "config.json: .*num_heads is 4.*num_kv_heads, 3"),
    "wrong shape": (lambda f: edited(f, intermediate_size=60), r"mlp.*_proj.weight has shape \(.*56.*config.json makes it \(.*60"),
    "too few layers in the file": (lambda f: edited(f, num_hidden_layers=3), "layers.2.*is in no shard, nor 8 others"),
    "too many layers in the file": (lambda f: edited(f, num_hidden_layers=1), "layers.1.* belongs to no layer"),
    "missing shard": (lambda f: shard(f).unlink(), "model-00002-of-.* is missing"),
    "truncated shard": (lambda f: os.truncate(shard(f), shard(f).stat().st_size - 100), "model-00002-of-.*not a whole safetensors file"),
    "truncated header": (lambda f: os.truncate(shard(f), 50), "model-00002-of-.*not a whole safetensors file"),
    "empty shard": (lambda f: os.truncate(shard(f), 0), "model-00002-of-.*not a whole safetensors file"),
    "shard elsewhere": (lambda f: indexed(f, "../model.safetensors"), "it must be the name of a file beside the index"),
    "no weights": (lambda f: [path.unlink() for path in (*f.glob("*.safetensors"), f / INDEX)], "model.safetensors is missing"),
}


def test_a_folder_that_is_not_there_is_told_with_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PretrainedError, match=f"runs/python/model: there is no such folder in {tmp_path}"):
        Transformer.from_pretrained("runs/python/model")


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_wrong_with_a_folder_is_said(what, folder):
    spoil, message = BROKEN[what]
    spoil(folder)
    with pytest.raises(PretrainedError, match=message) as raised:
        Transformer.from_pretrained(folder)
    assert str(folder) in str(raised.value)
