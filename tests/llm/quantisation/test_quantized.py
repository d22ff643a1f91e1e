"""Quantised on the way to the device, one weight at a time; saved, loaded again, and what is wrong with a folder said in one line."""

import json
import weakref

import pytest
import torch

from labkernels.errors import ArgumentError
from labkernels.llm.quantisation import quantized
from labkernels.llm.config import ModelConfig
from labkernels.llm.inference.engine import Engine
from labkernels.llm.model import Transformer
from labkernels.llm.pretrained import PretrainedError
from labkernels.llm.quantisation.quantized import load_model, quantize_model, save_quantized
from labkernels.llm.data.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder of several shards with a tokenizer, and its model."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["the cat sat on the mat"] * 4, vocab_size=280)
    model = Transformer(ModelConfig(tokenizer.vocab_size, 64, 2, 4, 2, 96, max_seq_len=64, tie_embeddings=False)).requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder, max_shard_bytes=60_000)
    tokenizer.save(folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder, model


def same(model: Transformer, other: Transformer) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("scheme, group_size, head", [("int8", None, None), ("int4", 32, "int8"), ("nf4", None, None), ("fp8", None, "int4")])
def test_a_model_quantised_on_the_way_is_the_one_quantised_afterwards(checkpoint, tmp_path, scheme, group_size, head):
    folder, model = checkpoint
    found, _ = load_model(folder, scheme, group_size=group_size, head=head, device="cpu")
    afterwards = quantize_model(Transformer.from_pretrained(folder), scheme, group_size, head)
    assert same(found, afterwards)
    save_quantized(found, tmp_path / "small", folder)
    again, _ = load_model(tmp_path / "small", device="cpu")
    assert same(found, again)
    engines = Engine(found), Engine.from_pretrained(tmp_path / "small", device="cpu")
    assert engines[0].generate([1, 2, 3], 8).tokens == engines[1].generate([1, 2, 3], 8).tokens
    assert engines[1].tokenizer.encode("the cat") == Tokenizer.load(folder).encode("the cat")


def test_a_tied_head_may_be_quantised_and_the_embedding_stays(tmp_path):
    torch.manual_seed(1)
    model = Transformer(ModelConfig(90, 64, 1, 4, 2, 96, max_seq_len=64)).requires_grad_(False)
    model.save_pretrained(tmp_path / "whole")
    found, _ = load_model(tmp_path / "whole", "int8", head="int8", device="cpu")
    assert torch.equal(found.embedding.weight, model.embedding.weight)
    torch.testing.assert_close(found.head.weight.dequantize(), model.embedding.weight, atol=1e-3, rtol=0)
    save_quantized(found, tmp_path / "small")
    again, _ = load_model(tmp_path / "small", device="cpu")
    assert same(found, again)
    assert Engine(again).generate([5, 6], 4).tokens == Engine(found).generate([5, 6], 4).tokens


def test_only_one_weight_is_there_in_full_at_a_time(checkpoint, monkeypatch):
    folder, _ = checkpoint
    seen, most = [], 0
    right = quantized.quantize_weight

    def watched(weight, *arguments):
        nonlocal most
        seen.append(weakref.ref(weight.untyped_storage()))
        most = max(most, sum(one() is not None for one in seen))
        return right(weight, *arguments)

    monkeypatch.setattr(quantized, "quantize_weight", watched)
    load_model(folder, "int8", device="cpu")
    assert len(seen) == 8 and most == 1


def test_shards_of_a_quantised_checkpoint_are_read_together(checkpoint, tmp_path, monkeypatch):
    folder, model = checkpoint
    monkeypatch.setattr(quantized, "MAX_SHARD_BYTES", 30_000)
    made, _ = load_model(folder, "int4", device="cpu")
    save_quantized(made, tmp_path)
    assert len(list(tmp_path.glob("quantized-*.safetensors"))) > 2
    assert same(made, load_model(tmp_path, device="cpu")[0])


def broken(folder, change) -> None:
    described = json.loads((folder / "config.json").read_text())
    change(described)
    (folder / "config.json").write_text(json.dumps(described))


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda d: d["quantization_config"].update(quant_method="gptq"), "gptq"),
        (lambda d: d["quantization_config"].update(files=["other.safetensors"]), "other.safetensors is missing"),
        (lambda d: d["quantization_config"].update(files=["../config.json"]), "missing"),
        (lambda d: d["quantization_config"].update(scheme="int3"), "int3"),
        (lambda d: d.update(intermediate_size=128), "shape"),
        (lambda d: d.update(num_hidden_layers=3), "is in no file"),
        (lambda d: d.update(num_hidden_layers=1), "belongs to no layer"),
    ],
)
def test_what_is_wrong_with_a_quantised_folder_is_said(checkpoint, tmp_path, change, said):
    save_quantized(load_model(checkpoint[0], "int8", device="cpu")[0], tmp_path)
    broken(tmp_path, change)
    with pytest.raises(PretrainedError, match=said):
        load_model(tmp_path, device="cpu")


def test_a_truncated_file_is_said(checkpoint, tmp_path):
    save_quantized(load_model(checkpoint[0], "int8", device="cpu")[0], tmp_path)
    path = next(tmp_path.glob("quantized-*"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PretrainedError, match="not a whole safetensors file"):
        load_model(tmp_path, device="cpu")


def test_wrong_requests_are_named(checkpoint, tmp_path):
    folder, model = checkpoint
    with pytest.raises(ArgumentError, match="int2"):
        load_model(folder, "int2")
    with pytest.raises(ArgumentError, match="head"):
        load_model(folder, None, head="int8")
    with pytest.raises(ArgumentError, match="group_size"):
        load_model(folder, "int8", group_size=64)
    with pytest.raises(ArgumentError, match="not quantised"):
        save_quantized(model, tmp_path)
    save_quantized(load_model(folder, "int8", device="cpu")[0], tmp_path)
    with pytest.raises(ArgumentError, match="quantised already"):
        load_model(tmp_path, "int4", device="cpu")


def test_without_a_network_the_way_around_is_told(monkeypatch):
    import huggingface_hub

    def fails(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(PretrainedError, match=r"hf download some/model --local-dir"):
        load_model("some/model")
    with pytest.raises(PretrainedError, match="no such folder"):
        load_model("/nowhere/at/all")
