"""Published figures: every file says whose they are and what they were measured against, and is found by its name."""

import pandas
import pytest

from labkernels.errors import LabKernelsError
from labkernels.lab import published as module
from labkernels.lab.published import published

FILES = sorted(module.FOLDERS[0].glob("*.csv"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_row_names_its_operation_gpu_and_source(path):
    frame = published(path.stem)
    assert len(frame) and frame[["op", "against", "gpu", "source", "source_note"]].notna().all(axis=None)


def test_the_float32_table_has_the_sizes_that_we_measure():
    frame = published("attention_rtx3090")
    assert frame["seq_len"].tolist() == [512, 1024, 2048, 4096] and set(frame["head_dim"]) == {128} and set(frame["heads"]) == {32}
    assert frame["speedup"].tolist() == [1.33, 1.60, 1.75, 1.80]
    assert frame["memory_saved_percent"].dropna().tolist() == [87.5, 98.4]


def test_an_unknown_name_is_told_what_there_is(tmp_path, monkeypatch):
    pandas.DataFrame({"op": ["sum"]}).to_csv(tmp_path / "mine.csv", index=False)
    monkeypatch.setattr(module, "FOLDERS", (tmp_path, tmp_path / "missing"))
    assert published("mine")["op"].tolist() == ["sum"]
    with pytest.raises(LabKernelsError, match="'yours'; there are mine"):
        published("yours")
