"""A transformer written as ONNX says in onnxruntime what it says in PyTorch, for any batch and length, with and without a cache."""

import json
import sys

import onnx
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from labkernels.cli import app
from labkernels.errors import ArgumentError
from labkernels.llm import onnx_export
from labkernels.llm.config import ModelConfig
from labkernels.llm.model import Transformer
from labkernels.llm.onnx_export import ExportError, difference, export, in_pieces
from labkernels.llm.quantisation.quantized import quantize_model

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}


def random_model(**fields) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(96, 32, 2, 4, 2, 48, max_seq_len=64, **fields)).requires_grad_(False)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.25)
    return model


def logits(session, tokens: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(session.run(None, {"input_ids": tokens.numpy()})[0])


@pytest.mark.parametrize("fields", [
    {"rope_scaling": LLAMA3},  # grouped queries, tied head
    {"qk_norm": True, "tie_embeddings": False, "activation": "gelu_tanh"},
], ids=["llama-3", "qk-norm, own head, GELU"])  # fmt: skip
def test_onnxruntime_gives_the_models_logits_for_any_batch_and_length(fields, tmp_path):
    model = random_model(**fields)
    path = export(model, tmp_path / "model.onnx")
    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(str(path))
    for shape in ((1, 1), (3, 33), (2, 64), (5, 2)):
        tokens = torch.randint(0, 96, shape)
        torch.testing.assert_close(logits(session, tokens), model(tokens), rtol=0, atol=1e-4)
    assert session.get_inputs()[0].shape == ["batch", "seq"] and model(tokens).abs().max() > 0.5
    assert difference(model, path) < 1e-5
    model.blocks[1].ffn.down_proj.weight[3] *= 1.01  # the file is another model's: difference must tell
    assert difference(model, path) > 1e-4


def test_with_a_cache_text_in_pieces_is_the_text_at_once(tmp_path, monkeypatch):
    model = random_model(rope_scaling=LLAMA3, qk_norm=True)
    monkeypatch.setattr(onnx_export, "ONE_FILE_BYTES", 1000)  # weights go into a file of their own, as those of large models do
    path = export(model, tmp_path / "model.onnx", cache=True)
    assert (tmp_path / "model.onnx.data").stat().st_size > 30_000
    session = onnxruntime.InferenceSession(str(path))
    assert [each.name for each in session.get_inputs()][1:3] == ["past_key_values.0.key", "past_key_values.0.value"]
    assert [each.name for each in session.get_outputs()][-1] == "present.1.value"
    tokens = torch.randint(0, 96, (3, 40))
    for lengths in ([40], [1] * 40, [17, 1, 1, 21]):
        torch.testing.assert_close(in_pieces(session, tokens, lengths), model(tokens), rtol=0, atol=1e-4)
    assert difference(model, path) < 1e-5


def test_the_command_writes_a_file_and_compares_it(tmp_path):
    random_model().save_pretrained(tmp_path / "model")

    def run(*arguments):
        result = CliRunner().invoke(app, ["export-onnx", *map(str, arguments)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout, result.stderr

    code, shown, _ = run(tmp_path / "model", tmp_path / "half.onnx", "--dtype", "float16", "--cache", "--json")
    found = json.loads(shown)
    assert code == 0 and found["bytes"] == (tmp_path / "half.onnx").stat().st_size and 1e-6 < found["difference"] < 0.02
    code, shown, said = run(tmp_path / "model", tmp_path / "half.onnx")
    assert code == 1 and shown == "" and "--overwrite" in said and said.count("\n") == 1
    code, shown, said = run(tmp_path / "none", tmp_path / "x.onnx")
    assert code == 1 and "no such folder" in said and said.count("\n") == 1


def test_what_cannot_be_exported_is_said(tmp_path, monkeypatch):
    model = random_model()
    with pytest.raises(ArgumentError, match="dtype"):
        export(model, tmp_path / "x.onnx", dtype=torch.bfloat16)
    with pytest.raises(ArgumentError, match="no folder"):
        export(model, tmp_path / "no" / "x.onnx")
    with pytest.raises(ArgumentError, match="quantised"):
        export(quantize_model(random_model(), "int8"), tmp_path / "x.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    with pytest.raises(ExportError, match=r"onnxscript is not installed; pip install 'labkernels\[onnx\]'"):
        export(model, tmp_path / "x.onnx")
