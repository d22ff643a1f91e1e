"""The ablation ladder: rows stand on rows, all train the same, Hugging Face's too, and what is not measured is said."""

import pandas
import pytest
import torch

from labkernels.errors import ArgumentError, LabKernelsError
from labkernels.llm.training import ablation
from labkernels.llm.training.ablation import LADDER, ROWS, main, measure, measure_all, options_of
from labkernels.llm.data.corpora import corpus
from labkernels.llm.data.shards import prepare
from labkernels.llm.training.train import TrainConfig

SMALL = {"preset": "10m", "compile": "none", "seq_len": 32, "steps": 5, "batch_size": 2, "accumulate": 1, "device": "cpu",
         "model": {"vocab_size": 320, "embed_dim": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "ffn_dim": 64}}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for number in range(20):
        (folder / f"{number}.txt").write_text("".join(f"{i} plus {number} is {i + number}. " for i in range(60)))
    return prepare(corpus(folder), 300, folder=tmp_path_factory.mktemp("tokens") / "tokens", progress=False)


def test_each_row_stands_on_rows_before_it_and_is_a_training():
    names = list(LADDER)
    for name, row in LADDER.items():
        assert row.base is None or names.index(row.base) < names.index(name)
        options = options_of(row)
        assert TrainConfig(steps=1, **options)
        assert options.get("batch_size", 16) * options.get("accumulate", 1) == 16, "all rows take in the same tokens"
    assert options_of(LADDER["fp8"])["precision"] == "bf16" and options_of(LADDER["fp8"])["optimizer"] == "adamw"


def test_the_rows_agree_on_the_loss_hugging_face_among_them(data):
    torch.set_num_threads(1)
    found = {name: measure(name, data, **SMALL) for name in ("float32", "bf16", "flash", "hf_eager")}
    exact = found["float32"]["loss"]
    assert all(row["loss"] == pytest.approx(exact, rel=0.01) for row in found.values()) and exact < 6
    assert all(row["tokens_per_s"] > 0 and row["batch"] == 2 and row["steps"] == 5 for row in found.values())
    other = measure("float32", data, **{**SMALL, "steps": 4})
    assert other["loss"] != pytest.approx(exact, rel=1e-3)  # a loss after other tokens is another one


def test_rows_of_what_products_do_themselves_agree_with_those_before(data):
    torch.set_num_threads(1)
    found = {name: measure(name, data, **{**SMALL, "steps": 3}) for name in ("cublas", "cudnn_attention", "kept")}
    assert all(row["loss"] == pytest.approx(found["cublas"]["loss"], rel=0.01) for row in found.values())
    for extras in ({"activation": "melted"}, {"attention forward": "flash"}):
        with pytest.raises(ArgumentError, match=next(iter(extras))):
            measure("cublas", data, **{**SMALL, "kernels": extras})


def test_what_is_not_measured_is_said(data, monkeypatch):
    said = []

    def fails(name, *_, **options):
        if name == "fp8":
            raise torch.OutOfMemoryError("no room")
        raise ImportError("No module named 'liger_kernel'")

    monkeypatch.setattr(ablation, "measure", fails)
    rows = measure_all(["fp8", "hf_liger"], {"all": data}, 100.0, said.append)
    assert [row["note"] for row in rows] == ["failed: No module named 'liger_kernel'", "out of memory"]
    rows = measure_all(["fp8"], {"all": data}, -1.0, said.append)
    assert rows[0]["note"].startswith("left out") and len(said) == 3


def test_urgent_rows_come_first_and_the_table_is_in_the_ladders_order(data, monkeypatch):
    order = []
    monkeypatch.setattr(ablation, "measure", lambda name, *_, **options: order.append(name) or {"row": name, "note": "", "tokens_per_s": 1, "loss": 2})
    rows = measure_all(["float32", "our_kernels", "hf_compiled_layers"], {"all": data}, 100.0, lambda text: None)
    assert order == ["hf_compiled_layers", "our_kernels", "float32"] and [row["row"] for row in rows] == [name for name in ROWS if name in order]


def test_recording_needs_a_gpu(tmp_path):
    if not torch.cuda.is_available():
        with pytest.raises(LabKernelsError, match="recorded on an NVIDIA GPU"):
            main(record=tmp_path)


@pytest.mark.gpu
def test_a_row_on_a_gpu_has_memory_and_mfu(data):
    row = measure("our_kernels", data, **{**SMALL, "device": "cuda"})
    assert row["peak_gb"] > 0 and 0 < row["mfu"] < 1 and pandas.notna(row["loss"])
