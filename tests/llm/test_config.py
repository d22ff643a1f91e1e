"""A shape that cannot be is refused by the name of its field."""

import dataclasses

import pytest

from labkernels.errors import ArgumentError
from labkernels.llm import PRESETS, ModelConfig

GOOD = {"vocab_size": 100, "embed_dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 48}


def test_head_dim_follows_from_the_heads_unless_given():
    assert ModelConfig(**GOOD).head_dim == 8
    assert ModelConfig(**GOOD, head_dim=20).head_dim == 20
    assert ModelConfig(**GOOD, head_dim=20).qkv_dim == 160


def test_it_cannot_be_changed_but_copied():
    config = ModelConfig(**GOOD)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.embed_dim = 64
    assert ModelConfig.preset("645m", num_layers=2) == dataclasses.replace(PRESETS["645m"], num_layers=2)
    assert hash(PRESETS["llama-3.2-1b"]) != hash(PRESETS["llama-3.2-3b"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"embed_dim": 32.0}, "embed_dim is 32.0"),
        ({"num_layers": True}, "num_layers is True"),
        ({"num_kv_heads": 3}, "num_heads is 4; it must be a multiple of num_kv_heads, 3"),
        ({"embed_dim": 30}, "embed_dim is 30, no multiple of num_heads, 4; give head_dim"),
        ({"head_dim": 7}, "head_dim is 7; it must be an even int"),
        ({"activation": "relu"}, "activation is 'relu'; it must be one of 'swiglu', 'gelu', 'gelu_tanh'"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0"),
        ({"norm_eps": -1e-5}, "norm_eps is -1e-05"),
        ({"rope_theta": "1e4"}, "rope_theta is '1e4'; it must be a positive number"),
        ({"tie_embeddings": "yes"}, "tie_embeddings is 'yes'; it must be True or False"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks 'low_freq_factor'"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ArgumentError, match=message):
        ModelConfig(**GOOD | changes)


def test_an_unknown_preset_is_told_those_that_there_are():
    with pytest.raises(ArgumentError, match="name is '1b'; it must be one of '10m', '645m'"):
        ModelConfig.preset("1b")
    with pytest.raises(ArgumentError, match="there is no field 'layers'; there are vocab_size, embed_dim, num_layers"):
        ModelConfig.preset("10m", layers=2)
