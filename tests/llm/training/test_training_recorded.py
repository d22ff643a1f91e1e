"""What lab 14 shows of training.csv: other models stand beside what others published of theirs."""

import pandas
import pytest

from labkernels.lab.measured import NotRecorded
from labkernels.llm.training import recorded


def test_other_models_stand_above_the_published_figures_of_the_same():
    columns = ["preset", "batch", "seq_len", "ms_per_step", "tokens_per_s", "peak_gb", "gpu"]
    ours = [("645m", 16, 2048, 300.0, 1.1e5, 40.0), (None, None, None, None, None, None), ("730m", 40, 384, 128.0, 120_000.0, 26.4), ("llama-2-7b", 32, 256, 605.0, 13_540.0, 64.2)]
    found = recorded.shapes(pandas.DataFrame([(*row, "NVIDIA H200") for row in ours], columns=columns))
    assert found["model"].tolist() == ["730m", "730m", "llama-2-7b", "llama-2-7b"]
    assert found["steps/s"].tolist() == ["7.81", "1.2 to 1.5", "1.65", "1.25"]
    assert found["tokens/s"].tolist() == ["120,000", "18,432 to 23,040", "13,540", ""]
    assert found["GB"].tolist() == ["26", "", "64", "76"]
    assert found["GPU"].tolist()[1] == "NVIDIA GeForce RTX 4070 Ti, published" and found["a step"].tolist()[3] == "32 sequences"


def test_where_nothing_is_recorded_that_is_told(monkeypatch, capsys):
    def missing(name):
        raise NotRecorded("none")

    monkeypatch.setattr(recorded, "measured_file", missing)
    assert recorded.ladder() is None and "not recorded yet: on an H200, python -m labkernels.llm.training.ablation" in capsys.readouterr().out
    assert recorded.trained("nobody.csv") is None and "not recorded yet: data/trained/nobody.csv" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["730m", "llama-2-7b"])
def test_what_is_recorded_has_the_published_models(model):
    rows = recorded.shapes(recorded.ladder())
    assert rows["model"].eq(model).sum() >= 2
