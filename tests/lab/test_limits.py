"""The limits of the recorded rows follow from one set of ceilings, and no row passes them but where data/README.md says so."""

import shutil

import pandas
import pytest

from labkernels.lab import measured
from labkernels.lab.ladder import BEYOND, share_label
from labkernels.lab.limits import settle
from labkernels.lab.measured import ceilings_of, measured_file
from labkernels.operation import ops

HOME = measured_file("ceilings").parent
RECORDED = [path.stem for path in sorted(HOME.glob("*.csv")) if path.stem in ops]


@pytest.fixture
def copy(tmp_path):
    for name in ("ceilings", "w8a8_matmul", "matmul"):
        shutil.copy(HOME / f"{name}.csv", tmp_path)
    return tmp_path


def test_the_recorded_limits_follow_from_the_recorded_ceilings(tmp_path):
    shutil.copytree(HOME, tmp_path / "h200")
    assert settle(tmp_path / "h200") == []  # else: python -m labkernels.lab.limits data/measured/h200


@pytest.mark.parametrize("name", RECORDED)
def test_no_row_passes_the_limit_but_by_halves_or_by_reading_more_than_it_writes(name):
    frame = measured.recorded(name).dropna(subset=["ms"])
    past = frame[frame["share_of_limit"] > 1.0001]
    of_bytes = (past["share_of_limit"] < 1.1) & (past["tflops"] < 100)  # read / copy
    by_halves = (past["dtype"] == "float32") & past["variant"].str.contains("split|v2_fused") & (past["kind"] == "ours")
    assert (of_bytes | by_halves).all(), past[~(of_bytes | by_halves)]
    assert (frame[frame["share_of_limit"] > BEYOND]["dtype"] == "float32").all()


def test_a_faster_row_raises_the_ceiling_of_its_kind_and_no_other(copy):
    settle(copy)
    path = copy / "w8a8_matmul.csv"
    frame = pandas.read_csv(path, dtype=str, keep_default_na=False)
    first = frame.index[frame["ms"] != ""][0]
    before = ceilings_of(pandas.read_csv(copy / "ceilings.csv"))
    frame.loc[first, "tflops"] = "1800"
    frame.to_csv(path, index=False)
    assert settle(copy) == ["ceilings.csv", "w8a8_matmul.csv"]
    rows = pandas.read_csv(copy / "ceilings.csv").set_index("name")
    assert rows.loc["best_int8", "value"] == 1800 and rows.loc["best_int8", "by"].startswith(f"w8a8_matmul {frame.loc[first, 'variant']}: m ")
    after = ceilings_of(rows.reset_index())
    assert after.tflops == {**before.tflops, "int8": 1800.0} and after.tflops["float32"] < 60
    assert settle(copy) == []


def test_what_is_past_a_limit_of_other_units_is_told_as_a_factor():
    assert [share_label(share) for share in (0.0051, 0.86, 1.032, 4.58)] == ["1%", "86%", "103%", "4.6×"]
