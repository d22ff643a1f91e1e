"""Commands for language models: what they print, and that each mistake ends in one line that says what and what to do."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket

import pytest
import torch
from tests.llm.server.tiny_server import engine, model, tokenizer
from typer.testing import CliRunner

from labkernels.cli import app, loading
from labkernels.cli.options import Choices, Scheme
from labkernels.llm.quantisation import held_out
from labkernels.llm.quantisation.calibrate import quantize_calibrated
from labkernels.llm.config import ModelConfig
from labkernels.llm.inference.engine import Engine
from labkernels.llm.model import Transformer
from labkernels.llm.quantisation.quantized import load_model

CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny model in three shards; copy it before changing anything."""
    made = tmp_path_factory.mktemp("models") / "tiny"
    model().save_pretrained(made, max_shard_bytes=45_000)
    tokenizer().save(made)
    return made


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def run(*arguments, input=None):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=input)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def failing(*arguments) -> str:
    """The one line of a command that ends with status 1."""
    code, shown, said = run(*arguments)
    assert code == 1 and shown == "" and said.count("\n") == 1 and "Traceback" not in said, (code, shown, said)
    return said


def test_generate_writes_what_the_engine_says(folder):
    want = engine().generate("the cat", 12, temperature=0.9, seed=4, top_k=50)
    options = ["--max-new-tokens", 12, "--temperature", 0.9, "--seed", 4, "--top-k", 50, *CPU]
    assert run("generate", folder, "the cat", *options) == (0, want.text + "\n", "")
    assert run("generate", folder, "-", *options, input="the cat") == (0, want.text + "\n", "")


def test_several_prompts_come_in_their_order_whatever_the_batch_size(folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("the dog\nüber\n")
    shown = []
    for size in (1, 8):
        code, out, _ = run(
            "generate", folder, "the cat", "--file", tmp_path / "prompts.txt", "--max-new-tokens", 6, "--batch-size", size, "--json", *CPU
        )
        answers = json.loads(out)["answers"]
        assert code == 0 and [answer["prompt"] for answer in answers] == ["the cat", "the dog", "über"]
        shown.append([(answer["text"], answer["finish_reason"], answer["new_tokens"]) for answer in answers])
    want = engine().generate(["the cat", "the dog", "über"], 6)
    assert shown[0] == shown[1] == [(each.text, each.finish_reason, len(each.tokens)) for each in want]


def test_both_ways_to_attend_write_the_same_and_a_model_that_the_kernels_do_not_take_is_refused(folder, tmp_path):
    torch.manual_seed(1)
    shape = dataclasses.replace(
        model().config, embed_dim=64, head_dim=64, ffn_dim=96
    )  # as in test_engine.py, which compiles the same kernels
    Transformer(shape, dtype=torch.bfloat16).save_pretrained(tmp_path)
    tokenizer().save(tmp_path)
    plain, kernels = (
        run("generate", tmp_path, "the cat", "--max-new-tokens", 3, flag, *CPU) for flag in ("--no-flash-attention", "--flash-attention")
    )
    assert plain[:2] == kernels[:2] and plain[0] == 0 and plain[2] == "" and "the kernels run in the emulator" in kernels[2]
    assert "takes a head_dim of a multiple of 16, at most 256; this model has 8" in failing(
        "generate", folder, "x", "--flash-attention", *CPU
    )


def test_options_say_what_the_engine_is_to_do():
    fast, small = Choices(max_speed=True, device="cpu"), Choices(optimize_memory=True, device="cpu")
    assert (fast.scheme, fast.engine_options()["lookahead"]) == ("int4", 32)
    assert (small.scheme, small.cache_dtype, small.engine_options()["chunk_tokens"]) == ("int4", "int8", 256)
    assert (
        Choices(max_speed=True, quantize=Scheme.none).scheme is None and Choices(quantize=Scheme.nf4, optimize_memory=True).scheme == "nf4"
    )
    assert Choices(flash_attention=True, device="cpu").engine_options()["runner"] == "auto"
    assert Choices(device="cpu").engine_options()["runner"] == "cached"


def test_every_option_has_a_help_that_says_what_it_does():
    from typer.main import get_command

    commands = get_command(app).commands
    commands |= commands.pop("data").commands
    for name in commands:
        for parameter in commands[name].params:
            assert parameter.name == "help" or len(getattr(parameter, "help", None) or "") > 15, (name, parameter.name)
    assert {"max_speed", "flash_attention", "optimize_memory", "batch_size", "quantize", "seed"} <= {
        p.name for p in commands["generate"].params
    }


def test_chat_remembers_what_was_said(folder):
    first = [{"role": "user", "content": "the cat"}]
    own = engine()
    one = own.chat(first, 8, temperature=0.0).text
    two = own.chat([*first, {"role": "assistant", "content": one}, {"role": "user", "content": "def"}], 8, temperature=0.0).text
    options = ["--max-new-tokens", 8, "--temperature", 0, *CPU]
    assert run("chat", folder, *options, input="the cat\ndef\n") == (0, f"{one}\n{two}\n", "")
    assert run("chat", folder, *options, input="the cat\n/new\nthe cat\n") == (0, f"{one}\n{one}\n", "")


def test_a_conversation_that_is_too_long_loses_its_beginning_and_goes_on(folder):
    code, shown, said = run("chat", folder, "--max-new-tokens", 20, "--context", 80, *CPU, input="the cat sat on the mat\n" * 5)
    assert code == 0 and "oldest question and answer are left out" in said and shown.count("\n") >= 5


def test_a_message_that_is_too_long_is_told_and_the_conversation_goes_on(folder):
    options = ["--max-new-tokens", 8, "--temperature", 0, "--context", 80, *CPU]
    code, shown, said = run("chat", folder, *options, input="the cat\n" + "the cat " * 200 + "\nthe dog\n")
    assert code == 0 and said == "(that is longer than the context of 80 tokens: write less)\n"
    assert shown == run("chat", folder, *options, input="the cat\nthe dog\n")[1]
    assert "--system is longer than the context of 80 tokens" in failing("chat", folder, "--system", "the cat " * 200, *options)


def test_quantize_writes_a_folder_that_is_loaded_without_the_first(folder, tmp_path):
    out = tmp_path / "small"
    code, shown, _ = run("quantize", folder, out, "--to", "int8", "--json", *CPU)
    found = json.loads(shown)
    assert code == 0 and found["scheme"] == "int8" and 0 < found["bytes_after"] < found["bytes_before"]
    want = Engine(load_model(folder, "int8", device="cpu")[0], tokenizer(), runner="cached").generate("the cat", 6).text
    assert run("generate", out, "the cat", "--max-new-tokens", 6, *CPU)[1] == want + "\n"
    assert run("generate", out, "the cat", "--max-new-tokens", 6, "--max-speed", *CPU)[1] == want + "\n"  # it stays what it is
    assert "is quantised already, to int8" in failing("generate", out, "x", "--quantize", "int4", *CPU)
    assert "is not empty; give another folder, or --overwrite" in failing("quantize", folder, out, *CPU)
    assert "; next: labkernels generate '" in run("quantize", folder, tmp_path / "of int8", "--to", "int8", *CPU)[1]  # a shell takes it as it is
    (tmp_path / "ordinary").touch()
    assert {file.stat().st_mode for where in (folder, out) for file in where.iterdir()} == {(tmp_path / "ordinary").stat().st_mode}  # who may read it
    assert "is the model's own folder" in failing("quantize", folder, folder, "--overwrite", *CPU)


def test_quantize_calibrates_with_a_text_and_errs_less_on_it_than_the_nearest_numbers(folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat, and the dog sat behind it. def f(x): return x + 1\n" * 20)
    for name, options in (("nearest", []), ("calibrated", ["--calibration", text, "--calibration-tokens", 1024])):
        code, shown, _ = run("quantize", folder, tmp_path / name, "--to", "int4", "--group-size", 32, *options, "--json", *CPU)
        assert code == 0 and json.loads(shown)["scheme"] == "int4"
    plain, nearest, calibrated = (load_model(where, device="cpu")[0] for where in (folder, tmp_path / "nearest", tmp_path / "calibrated"))
    samples = held_out.of_whole_text(text, tokenizer(), plain.config.max_seq_len, 1024).tokens[:, :-1]
    with torch.no_grad():
        want = plain(samples)
        assert 0 < (calibrated(samples) - want).square().mean() < 0.8 * (nearest(samples) - want).square().mean()
        same = quantize_calibrated(load_model(folder, device="cpu")[0], samples, "int4", 32)
        assert torch.equal(same(samples), calibrated(samples))
    (tmp_path / "empty.txt").write_text("")
    assert "empty.txt has 1 tokens, not the 2 of one window" in failing(
        "quantize", folder, tmp_path / "x", "--calibration", tmp_path / "empty.txt", *CPU
    )
    assert "--group-size is 7" in failing("quantize", folder, tmp_path / "x", "--group-size", 7, *CPU)
    assert "--group-size is 32; int8 has a scale for each row" in failing("quantize", folder, tmp_path / "x", "--to", "int8", "--group-size", 32, *CPU)
    assert "quantised already" in failing("quantize", tmp_path / "nearest", tmp_path / "x", "--calibration", text, *CPU)


@pytest.mark.parametrize("quantize, cache", [(None, None), ("int8", None), ("int4", "int8")])
def test_memory_is_estimated_within_5_percent_from_the_config_alone(quantize, cache, tmp_path):
    shape = ModelConfig(
        vocab_size=500, embed_dim=128, num_layers=3, num_heads=4, num_kv_heads=2, ffn_dim=384, max_seq_len=512, tie_embeddings=False
    )
    Transformer(shape).save_pretrained(tmp_path)
    made = Engine.from_pretrained(tmp_path, quantize, device="cpu", max_batch=4, max_seq_len=300, cache_dtype=cache, runner="cached")
    used = sum(tensor.nbytes for name, tensor in [*made.model.named_parameters(), *made.model.named_buffers()] if name != "angles")
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()  # nothing but config.json is left to look at
    options = ["--dtype", quantize] if quantize else []
    code, shown, _ = run(
        "estimate-memory", tmp_path, "--batch-size", 4, "--context", 300, "--json", *options, *(["--cache", cache] if cache else [])
    )
    found = json.loads(shown)
    dtypes = 2 if quantize else 1  # of a float32 folder the rest is bfloat16 on a GPU, and in the estimate
    embedding = 2 * 500 * 128 * 4
    assert code == 0 and found["context"] == 300
    assert found["bytes"]["weights"] == pytest.approx(used - (embedding // 2 if dtypes == 2 else 0), rel=0.05)
    cache_bytes = made.cache.nbytes // (2 if quantize and not cache else 1)
    assert found["bytes"]["cache"] == pytest.approx(cache_bytes, rel=0.05)


def test_memory_of_presets_and_of_training():
    found = json.loads(run("estimate-memory", "llama-2-7b", "--dtype", "int4", "--batch-size", 4, "--context", 4096, "--json")[1])
    assert 3.5e9 < found["bytes"]["weights"] < 4.3e9 and found["bytes"]["cache"] == 4 * 4096 * 2 * 32 * 4096 * 2
    assert "gradients" in run("estimate-memory", "10m", "--training")[1]
    assert "leave out --cache" in failing("estimate-memory", "10m", "--training", "--cache", "int8")
    assert "takes at most 4096 tokens" in failing("estimate-memory", "llama-2-7b", "--context", 8192)


def test_bench_times_a_models_answers(folder, tmp_path):
    code, shown, _ = run("bench", "--model", folder, "--prompt-tokens", 4, "--new-tokens", 4, "--batch-size", 2, "--json", *CPU)
    found = json.loads(shown)
    assert code == 0 and found["tokens_per_s"] > 0 and found["first_token_ms"] > 0 and (found["batch_size"], found["new_tokens"]) == (2, 4)
    assert run("quantize", folder, tmp_path / "small", "--to", "int8", *CPU)[0] == 0
    shown = run("bench", "--model", tmp_path / "small", "--prompt-tokens", 4, "--new-tokens", 2, "--json", *CPU)[1]
    assert (found["weights"], json.loads(shown)["weights"]) == ("float32", "int8")
    assert "goes neither with operations" in failing("bench", "softmax", "--model", folder)


def test_lab_lists_the_book_and_names_what_is_not_there(tmp_path):
    assert "11_kv_cache" in run("lab", "--list", "--root", loading.__file__.split("/labkernels/")[0])[1].split()
    assert "there are no labs in" in failing("lab", "--root", tmp_path)
    assert "no lab is called '99'" in failing("lab", "99", "--root", loading.__file__.split("/labkernels/")[0])


def test_a_folder_that_is_not_there_or_no_model(tmp_path, folder):
    assert "there is no such folder" in failing("generate", tmp_path / "nothing", "x")
    assert f"{tmp_path / 'config.json'} is missing" in failing("generate", tmp_path, "x")
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    for command in (["generate", file, "x"], ["quantize", file, tmp_path / "q"], ["estimate-memory", file]):
        assert f"{file} is a file; a model is a folder" in failing(*command)
    shutil.copytree(folder, tmp_path / "run" / "model")
    assert f"the model that was trained there is {tmp_path / 'run' / 'model'}" in failing("generate", tmp_path / "run", "x")
    assert "llama-2-7b is a shape without weights" in failing("generate", "llama-2-7b", "x")
    assert "no prompt is given" in failing("generate", folder)


def test_a_hubs_name_without_a_network_names_the_local_route(monkeypatch):
    def nowhere(host, port):
        raise OSError(f"cannot find {host}")

    monkeypatch.setattr(loading.socket, "getaddrinfo", nowhere)
    monkeypatch.setattr(loading.urllib.request, "getproxies", dict)
    for command in (["generate", "some/model", "x"], ["estimate-memory", "some/model"]):
        said = failing(*command)
        assert "cannot find huggingface.co" in said and "hf download some/model --local-dir FOLDER" in said


def test_an_architecture_that_is_not_read(copy):
    config = json.loads((copy / "config.json").read_text())
    for change, says in (
        ({"architectures": ["MixtralForCausalLM"]}, "this package reads LlamaForCausalLM"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"num_attention_heads": 3}, "num_heads is 3"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised by 'gptq'"),
    ):
        (copy / "config.json").write_text(json.dumps(config | change))
        assert says in failing("generate", copy, "x", *CPU)
    (copy / "config.json").write_text("{")
    assert "config.json: not JSON" in failing("generate", copy, "x", *CPU)


@pytest.mark.parametrize("quantize", [[], ["--quantize", "int8"]])
def test_shards_that_are_truncated_corrupt_missing_or_of_wrong_shape(copy, quantize):
    shard = sorted(copy.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    for broken in (whole[: len(whole) // 2], b"\xff" * 100 + whole[100:], b""):
        shard.write_bytes(broken)
        assert f"{shard}: not a whole safetensors file" in failing("generate", copy, "x", *quantize, *CPU)
    shard.unlink()
    assert f"{shard} is missing" in failing("generate", copy, "x", *quantize, *CPU)
    shard.write_bytes(whole)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    assert "has shape (64, 32); config.json makes it (96, 32)" in failing("generate", copy, "x", *quantize, *CPU)


def test_too_little_memory_is_told_before_anything_is_loaded_with_what_would_fit(folder, monkeypatch):
    monkeypatch.setattr(loading, "free_memory", lambda choices: (2_200_000, "this machine"))
    monkeypatch.setattr(Engine, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    said = failing("serve", folder, *CPU, "--context", 256, "--batch-size", 64, "--port", 0)
    assert "MB by the estimate (weights 117 kB, cache" in said and "this machine has 2.2 MB free; with --optimize-memory" in said
    monkeypatch.setattr(loading, "free_memory", lambda choices: (30 * 10**9, "the GPU"))
    said = failing("serve", folder, *CPU, "--batch-size", 10**7, "--port", 0)
    assert "the GPU has 30 GB free" in said


def test_memory_that_runs_out_later_is_told_in_one_line_too(folder, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore lines")

    monkeypatch.setattr(Engine, "step", full)
    assert "out of memory: CUDA out of memory. Tried to allocate 2 GiB.; take a smaller --batch-size" in failing(
        "generate", folder, "x", "y", *CPU
    )


def test_options_that_cannot_be(folder, tmp_path):
    assert "--device is 'tpu'; it must be cuda, cuda:NUMBER or cpu" in failing("generate", folder, "x", "--device", "tpu")
    assert "--context is 999; " in failing("generate", folder, "x", "--context", 999, *CPU)
    assert "leave out --no-flash-attention" in failing("generate", folder, "x", "--max-speed", "--no-flash-attention", *CPU)
    assert "are more than the 256 of" in failing("generate", folder, "the cat " * 200, *CPU)
    said = failing("generate", folder, "the cat", "--max-new-tokens", 400, *CPU)
    room = int(said.split()[-1])
    assert f"and --max-new-tokens 400 are more than the 256 of {folder}; there is room for --max-new-tokens {room}" in said
    assert run("generate", folder, "the cat", "--max-new-tokens", room, *CPU)[0] == 0
    assert "are more than the 40 of --context" in failing("generate", folder, "the cat", "--max-new-tokens", 40, "--context", 40, *CPU)
    (tmp_path / "prompts").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in failing("generate", folder, "--file", tmp_path / "prompts", *CPU)
    if not torch.cuda.is_available():
        assert "torch sees no NVIDIA GPU here" in failing("generate", folder, "x", "--device", "cuda")


def test_a_model_without_a_tokenizer_writes_no_text_but_is_timed(copy):
    (copy / "tokenizer.json").unlink()
    for command in (["generate", copy, "x"], ["chat", copy], ["serve", copy, "--port", 0]):
        assert f"{copy}: there is no tokenizer.json, so text cannot become tokens" in failing(*command, *CPU)
    assert run("bench", "--model", copy, "--prompt-tokens", 4, "--new-tokens", 2, "--json", *CPU)[0] == 0


def test_an_address_that_is_taken_or_none_is_told_before_anything_is_loaded(folder, monkeypatch):
    monkeypatch.setattr(Engine, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}: Address already in use; --port 0 takes a free one" in failing("serve", folder, *CPU, "--port", port)
    assert "--device is 'cpu:1'; it must be cuda, cuda:NUMBER or cpu" in failing("generate", folder, "x", "--device", "cpu:1")
    assert "--host 300.1.1.1 --port 0: " in failing("serve", folder, *CPU, "--host", "300.1.1.1", "--port", 0)


def test_a_model_without_a_template_does_not_chat(copy):
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings.pop("chat_template")
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "has no chat template" in failing("chat", copy, *CPU)
