"""What quantisations cost a model that has learnt something: measured as the engine runs it, on text held out, beside memory; GPTQ layer by layer."""

import argparse
import dataclasses
import json
import math
import pathlib
import shutil

import pandas
import pytest
import torch
from typer.testing import CliRunner

from labkernels.cli import app
from labkernels.errors import ArgumentError
from labkernels.lab import measured
from labkernels.llm.quantisation import calibrate, held_out, pareto, quality
from labkernels.llm.config import ModelConfig
from labkernels.llm.data.corpora import corpus
from labkernels.llm.training.evaluate import evaluate
from labkernels.llm.data.loader import Batch
from labkernels.llm.model import Transformer
from labkernels.llm.quantisation.quantized import load_model, quantize_model, save_quantized
from labkernels.llm.data.shards import prepare
from labkernels.llm.data.tokenizer import Tokenizer
from labkernels.nn import QuantLinear

SEQ = 64


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder of a model, its tokenizer, file of text): two layers, 150 steps on the first half of a Python module."""
    text = pathlib.Path(argparse.__file__).read_text()
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(text)
    tokenizer = Tokenizer.train([text], 512)
    torch.manual_seed(0)
    model = Transformer(ModelConfig(tokenizer.vocab_size, 64, 2, 4, 2, 128, max_seq_len=SEQ))
    ids = torch.tensor(tokenizer.encode_documents([text[: len(text) // 2]])[0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    for _ in range(150):
        rows = torch.stack([ids[start : start + SEQ + 1] for start in torch.randint(0, len(ids) - SEQ - 1, (16,))])
        model(rows[:, :-1], rows[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "model")
    tokenizer.save(folder / "model")
    return folder / "model", tokenizer, folder / "text.txt"


@pytest.fixture(scope="module")
def texts(trained):
    return held_out.of_text(trained[2], trained[1], SEQ, 6400)


@pytest.fixture(scope="module")
def table(trained, texts):
    return quality.compare(lambda: load_model(trained[0], device="cpu")[0], [*quality.RECIPES, "int4-gptq-64+fp8"], *texts).set_index("recipe")


def test_the_unquantised_loss_is_the_one_that_training_measures(trained, texts):
    model, windows = load_model(trained[0], device="cpu")[0], texts[0]
    ours = quality.token_losses(model, windows.tokens)
    want = evaluate(model, [Batch(windows.tokens[:, :-1], windows.tokens[:, 1:])], windows.token_bytes)
    assert math.isclose(float(ours.double().mean()), want.loss, rel_tol=1e-5) and want.loss < 0.6 * math.log(512)
    found = quality.compare(lambda: model, ["none"], windows).iloc[0]
    assert math.isclose(found.bits_per_byte, want.bits_per_byte, rel_tol=1e-5) and math.isclose(found.perplexity, math.exp(want.loss), rel_tol=1e-4)
    assert found.tokens == want.tokens


def test_quantised_losses_are_those_of_the_model_with_the_rounded_weights(trained, texts):
    quantised = quantize_model(load_model(trained[0], device="cpu")[0], "int4", 32, "int8")
    plain = load_model(trained[0], device="cpu")[0]
    for name, layer in quantised.named_modules():
        if isinstance(layer, QuantLinear) and name != "head":
            plain.get_submodule(name).weight.data = layer.weight.dequantize()
    plain.head = torch.nn.Linear(64, 512, bias=False)
    plain.head.weight.data = quantised.head.weight.dequantize()
    some = texts[0].tokens[:8]
    want = torch.nn.functional.cross_entropy(plain(some[:, :-1]).transpose(1, 2), some[:, 1:], reduction="none")
    torch.testing.assert_close(quality.token_losses(quantised, some), want, rtol=1e-4, atol=1e-4)


def test_more_bits_cost_less_and_calibration_helps(table):
    far = table.divergence  # a loss may fall by luck when weights are rounded
    assert far["none"] == 0 and 0 < far["none+int8"] < far["int8"] < far["fp8"] < 0.3 * far["int4"] and far["none+int8"] < far["none+fp8"] < far["fp8"]
    assert far["int4-gptq"] < 0.75 * far["int4"] and far["nf4-gptq"] < 0.75 * far["nf4"] and far["int4-gptq-32"] < 0.9 * far["int4-gptq"]
    assert far["int4-mse"] != far["int4"] and far["int4-gptq+int8"] != far["int4-gptq"]
    assert table.loss_change["none"] == table.loss_change_error["none"] == 0 < table.loss_change_error["int8"]
    assert math.isclose(table.loss["int4"] - table.loss["none"], table.loss_change["int4"], abs_tol=1e-6)
    assert table.tokens_per_s.isna().all()


def test_divergence_is_that_of_the_two_models_predictions_over_as_many_windows_as_there_is_room_for(trained, texts, monkeypatch):
    monkeypatch.setattr(quality, "LOGITS_BYTES", 3 * 4 * SEQ * 512)  # three windows at a time
    monkeypatch.setattr(quality, "KEPT_BYTES", 7 * 4 * SEQ * 512)
    windows = dataclasses.replace(texts[0], tokens=texts[0].tokens[:10])
    found = quality.compare(lambda: load_model(trained[0], device="cpu")[0], ["int4", "none+int8"], windows).set_index("recipe").divergence
    plain, quantised = (load_model(trained[0], device="cpu")[0] for _ in range(2))
    quantize_model(quantised, "int4")
    for name, layer in quantised.named_modules():
        if isinstance(layer, QuantLinear):
            plain.get_submodule(name).weight.data = layer.weight.dequantize()
    rounded, whole = (model(windows.tokens[:7, :-1]).log_softmax(-1).flatten(0, 1) for model in (plain, load_model(trained[0], device="cpu")[0]))
    want = torch.nn.functional.kl_div(rounded, whole, reduction="batchmean", log_target=True)
    assert math.isclose(found["int4"], float(want), rel_tol=1e-3) and 0 < found["none+int8"] < found["int4"]


def test_memory_is_that_of_the_tensors(table, trained, tmp_path):
    c = load_model(trained[0], device="cpu")[0].config
    assert table.weight_bytes["none"] == sum(p.nbytes for p in load_model(trained[0], device="cpu")[0].parameters())
    for recipe, options in {"int8": ("int8",), "int4-gptq-32": ("int4", 32), "nf4": ("nf4",)}.items():
        save_quantized(quantize_model(load_model(trained[0], device="cpu")[0], *options), tmp_path / recipe)
        stored = sum(path.stat().st_size for path in (tmp_path / recipe).glob("*.safetensors"))
        assert 0 <= stored - table.weight_bytes[recipe] < 6000  # the header
    assert table.cache_bytes_per_token["none"] == 2 * 2 * 2 * 16 * 4 and table.cache_bytes_per_token["none+fp8"] == 2 * 2 * 2 * (16 + 4)
    assert (table.memory_bytes == table.weight_bytes + c.max_seq_len * table.cache_bytes_per_token).all()


def test_each_layer_is_calibrated_with_what_it_meets_behind_the_quantised_ones(trained, texts, tmp_path):
    model, samples = load_model(trained[0], device="cpu")[0], texts[1].tokens[:32, :-1]
    whole = load_model(trained[0], device="cpu")[0]
    calibrate.quantize_calibrated(model, samples, "int4", 32, batch_size=5)
    met, replaced = {}, load_model(trained[0], device="cpu")[0]
    names = [name for name, layer in model.named_modules() if isinstance(layer, QuantLinear)]
    for name in names:
        layer = replaced.get_submodule(name)
        layer.weight.data = model.get_submodule(name).weight.dequantize()
        layer.register_forward_pre_hook(lambda _, x, name=name: met.update({name: x[0]}))
    replaced(samples)
    assert len(names) == 8 == len(met)
    for name in names:
        again = QuantLinear.from_linear(whole.get_submodule(name), "int4", 32, calibration=met[name])
        same = (again.packed == model.get_submodule(name).packed).float().mean()  # the Hessian's sums are in another order
        assert same > 0.98, (name, same)
    save_quantized(model, tmp_path, trained[0])
    assert torch.equal(quality.token_losses(load_model(tmp_path, device="cpu")[0], samples), quality.token_losses(model, samples))


def test_calibration_with_the_wrong_inputs_is_worse(trained, texts, monkeypatch):
    """The planted mistake: each layer's Hessian with its columns in another order."""
    right, far = calibrate.gptq.hessian, {}
    for name, hessian in {"right": right, "wrong": lambda x: right(x.flip(-1))}.items():
        monkeypatch.setattr(calibrate.gptq, "hessian", hessian)
        far[name] = quality.compare(lambda: load_model(trained[0], device="cpu")[0], ["int4-gptq"], *texts).divergence[1]
    assert 1.5 * far["right"] < far["wrong"]


@pytest.mark.parametrize("text, said", [
    ("int5", "no quantisation"), ("int4-gptq-48", "group_size is 48"), ("int8-64", "group_size"), ("none-gptq", "takes no quantiser"), ("int4+int4", "no quantisation"),
    ("int4+", "no quantisation"), ("int4-32-mse", "no quantisation"), ("", "no quantisation"),
])  # fmt: skip
def test_what_is_no_recipe_is_said(text, said):
    with pytest.raises(ArgumentError, match=said):
        quality.Recipe.parse(text)


def test_a_recipe_reads_back():
    for text in ("none", "none+fp8", "int8-gptq", "int4-mse-64", "nf4-32+int8"):
        assert str(quality.Recipe.parse(text)) == text


def test_frontier_has_what_nothing_beats(table):
    some = pandas.DataFrame({"memory_bytes": [1, 2, 3, 3, 1], "bits_per_byte": [3.0, 2.0, 2.0, 1.0, 3.5], "tokens_per_s": [5.0, 4.0, 9.0, math.nan, 6.0]})
    assert pareto.frontier(some) == [True, True, False, True, False]
    assert pareto.frontier(some, "tokens_per_s") == [False, False, True, False, False]
    picture = pareto.plot(table.reset_index())
    assert "int4-gptq-32" in picture.alt and len(picture.figure.axes) == 1
    assert len(pareto.plot(table.reset_index().assign(tokens_per_s=range(100, 100 + len(table)))).figure.axes) == 2
    assert picture.png().startswith(b"\x89PNG")


def test_a_recorded_table_is_drawn_and_a_missing_one_is_told(table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measured, "FOLDERS", (tmp_path,))
    (tmp_path / "h200").mkdir()
    assert pareto.recorded() is None and "labkernels evaluate" in capsys.readouterr().out
    table.reset_index().assign(tokens_per_s=100.0, commit="0123").to_csv(tmp_path / "h200" / "quantisation_quality.csv", index=False)
    assert pareto.recorded().commit[0] == "0123" and len(pareto.plot(pareto.recorded()).figure.axes) == 2


def test_windows_do_not_overlap_and_another_tokenizer_reads_the_same_text(trained, tmp_path, monkeypatch):
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(f"number {number}: " + " ".join(str((number * k) % 97) for k in range(60)))
    data = prepare(corpus(str(tmp_path)), 400, folder=tmp_path / "tokens", validation_fraction=0.3)
    own = held_out.of_dataset(data, "validation", data.tokenizer, 16, 10_000)
    stream = data["validation"].read(0, data["validation"].tokens)
    assert len(own.tokens) == (len(stream) - 1) // 16 and own.tokens[0].tolist() == stream[:17].tolist()
    few = held_out.of_dataset(data, "validation", data.tokenizer, 16, 64).tokens
    assert few.shape == (4, 17) and few[-1].tolist() != own.tokens[3].tolist()  # from all over the split
    theirs = held_out.of_dataset(data, "validation", trained[1], 16, 10_000)
    documents = {data.tokenizer.decode(data["validation"].document(n)[:-1]) for n in range(data["validation"].documents)}
    assert trained[1].decode(theirs.tokens[0, :6].tolist()) in "".join(documents) and theirs.token_bytes is not None
    monkeypatch.setenv("LABKERNELS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ArgumentError, match="give --data FOLDER"):
        held_out.dataset_of(data.tokenizer)
    shutil.copytree(data.folder, tmp_path / "cache" / "tokens" / "one")
    assert held_out.dataset_of(data.tokenizer).folder.name == "one"
    shutil.copytree(data.folder, tmp_path / "cache" / "tokens" / "two")
    with pytest.raises(ArgumentError, match="one of them by --data"):
        held_out.dataset_of(data.tokenizer)
    with pytest.raises(ArgumentError, match="has .* tokens, not the"):
        held_out.of_dataset(data, "validation", data.tokenizer, 100_000, 64)


def test_the_command_compares_draws_and_complains_in_one_line(trained, tmp_path):
    model, _, text = trained

    def run(*arguments):
        result = CliRunner().invoke(app, ["evaluate", *map(str, arguments), "--device", "cpu"])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout, result.stderr

    files = ["--plot", tmp_path / "p.svg", "--out", tmp_path / "t.csv"]
    code, shown, _ = run(model, "--text", text, "--quantize", "int4-mse,none+int8", "--tokens", 1000, "--json", *files)
    found = json.loads(shown)
    assert code == 0 and [row["recipe"] for row in found["rows"]] == ["none", "none+int8", "int4-mse"] and found["rows"][0]["tokens_per_s"] is None
    assert "<svg" in (tmp_path / "p.svg").read_text() and "int4-mse" in (tmp_path / "p.svg").read_text()
    written = pandas.read_csv(tmp_path / "t.csv")
    assert written.loss_change[2] > 0 and written.model[0] == "model" and "int4-mse" in pareto.plot(written).alt
    code, shown, _ = run(model, "--text", text, "--quantize", "int8", "--tokens", 1000, "--head", "int8")
    assert code == 0 and shown.splitlines()[3].startswith("int8 ")
    save_quantized(quantize_model(load_model(model, device="cpu")[0], "int8"), tmp_path / "small", model)
    assert run(tmp_path / "small", "--text", text, "--tokens", 1000)[0] == 0
    for arguments, said in {
        (model, "--text", text, "--quantize", "int5"): "no quantisation", (model, "--text", text, "--data", tmp_path): "leave one out",
        (model, "--data", tmp_path): "holds no prepared tokens", (model, "--text", text, "--speed"): "NVIDIA GPU", (model, "--text", text, "--seq-len", 65): "at most 64",
        (tmp_path / "small", "--text", text, "--quantize", "int4"): "quantised already", (model, "--text", text, "--plot", "x.bmp"): ".png",
        (tmp_path / "none", "--text", text): "no such folder", (model, "--text", text, "--out", tmp_path / "no" / "x.csv"): "no folder",
    }.items():  # fmt: skip
        code, shown, complaint = run(*arguments)
        assert code == 1 and shown == "" and said in complaint and complaint.count("\n") == 1, (arguments, shown, complaint)


def test_what_cannot_be_compared_is_refused(trained, texts):
    make = lambda: load_model(trained[0], device="cpu")[0]  # noqa: E731
    with pytest.raises(ArgumentError, match="int4-gptq needs text to calibrate"):
        quality.compare(make, ["int4-gptq"], texts[0])
    with pytest.raises(ArgumentError, match="quantised already"):
        quality.compare(lambda: quantize_model(make(), "int8"), ["int4"], texts[0])
    with pytest.raises(ArgumentError, match="vocabulary"):
        quality.token_losses(make(), dataclasses.replace(texts[0], tokens=texts[0].tokens + 500).tokens)
    with pytest.raises(ArgumentError, match="samples is"):
        calibrate.quantize_calibrated(make(), texts[1].tokens[0])


@pytest.mark.gpu
def test_on_a_gpu_the_kernels_cost_what_the_rounded_weights_cost(trained, texts, table):
    """In bfloat16, so that even the unquantised model differs a little; and the engine is measured."""
    recipes = ["none+int8", "int8", "int4", "int4-gptq", "nf4"]
    found = quality.compare(lambda: load_model(trained[0], device="cuda")[0], recipes, *texts, speed=True).set_index("recipe")
    assert abs(found.loss["none"] - table.loss["none"]) < 0.01
    for recipe in ("int4", "int4-gptq", "nf4"):
        assert 0.7 < found.divergence[recipe] / table.divergence[recipe] < 1.5, recipe
    assert found.divergence["int8"] < 0.3 * found.divergence["int4"] and (found.tokens_per_s > 0).all()
    assert found.weight_bytes["none"] == table.weight_bytes["none"] // 2
