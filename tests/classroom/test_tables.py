"""Tables of recorded figures: chosen by the marker, labelled with their source, and never stale unnoticed."""
import math

import pandas
import pytest

from labkernels.classroom import tables
from labkernels.classroom.source import BookError
from labkernels.lab.measured import NotRecorded

TEXT = "before\n<!-- measured: attention dtype=float32 causal=False across=seq_len -->\nold\n<!-- /measured -->\nafter\n"


@pytest.fixture(autouse=True)
def figures(monkeypatch, tmp_path):
    rows = []
    for dtype, factor in (("float32", 1.0), ("bfloat16", 0.25)):
        for variant, ms in (("v1_naive", 2.5), ("v2_online", 0.3), ("cudnn", 0.04)):
            for seq_len in (512, 4096):
                found = ms * factor * (seq_len / 512) ** 2 if (variant, dtype) != ("cudnn", "float32") else math.nan
                rows.append(
                    dict(op="attention", variant=variant, kind="ours", seq_len=seq_len, causal=False, dtype=dtype, ms=found)
                    | dict(share_of_limit=0.01 / found, note="" if found > 0 else "bfloat16 only")
                    | dict(gpu="NVIDIA H200", commit="0123abcd", date="2026-01-02")
                )
    folder = tmp_path / "measured"
    (folder / "h200").mkdir(parents=True)
    pandas.DataFrame(rows).to_csv(folder / "h200" / "attention.csv", index=False)
    monkeypatch.setattr("labkernels.lab.measured.FOLDERS", (folder,))


def test_the_table_between_the_markers_is_written_from_the_recorded_rows():
    lines = tables.with_tables(TEXT).splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and "old" not in lines
    assert lines[2:7] == [
        "|  | seq_len 512 | seq_len 4096 |",
        "| --- | --- | --- |",
        "| `v1_naive` | 2.5 ms (0%) | 160 ms (0%) |",
        "| `v2_online` | 300 µs (3%) | 19.2 ms (0%) |",
        "",
    ]
    assert "recorded on NVIDIA H200, 2026-01-02, commit 0123abcd" in lines[7]
    assert lines[7].startswith("Time of attention, not causal, float32, and the share of the limit reached; ")


def test_a_table_shows_those_that_it_is_told_to_and_speaks_of_no_other():
    lines = tables.with_tables(TEXT.replace(" across", " show=v2_online across")).splitlines()
    assert [line for line in lines if line.startswith("| `")] == ["| `v2_online` | 300 µs (3%) | 19.2 ms (0%) |"] and "cudnn" not in lines[6]


def test_times_as_fast_as_a_limit_of_other_units_are_explained(tmp_path):
    path = tmp_path / "measured" / "h200" / "attention.csv"
    frame = pandas.read_csv(path)
    frame.loc[(frame.variant == "v2_online") & (frame.dtype == "float32"), "share_of_limit"] = 4.58
    frame.to_csv(path, index=False)
    assert "300 µs (4.6×)" in tables.with_tables(TEXT) and "(×: so many times as fast as float32's limit" in tables.with_tables(TEXT)
    assert "×" not in tables.with_tables(TEXT.replace("float32", "bfloat16"))


def test_a_variant_that_was_not_timed_has_no_row_but_the_reason_below():
    assert tables.with_tables(TEXT).splitlines()[7].endswith("Without a row: `cudnn` (bfloat16 only).")
    assert "| `cudnn` | 10 µs" in tables.with_tables(TEXT.replace("float32", "bfloat16"))


def test_a_size_that_a_variant_does_not_take_is_a_dash_and_the_reason_below(tmp_path):
    path = tmp_path / "measured" / "h200" / "attention.csv"
    frame = pandas.read_csv(path)
    at = (frame.variant == "v2_online") & (frame.dtype == "float32") & (frame.seq_len == 4096)
    frame.loc[at, ["ms", "share_of_limit", "note"]] = [math.nan, math.nan, "takes few tokens"]
    frame.to_csv(path, index=False)
    lines = tables.with_tables(TEXT).splitlines()
    assert lines[5] == "| `v2_online` | 300 µs (3%) | – |" and lines[7].endswith("Not at all sizes: `v2_online` (takes few tokens).")


def test_writing_twice_changes_nothing(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(TEXT)
    assert tables.is_stale(path)
    tables.refresh(path)
    written = path.read_text()
    assert not tables.is_stale(path) and "seq_len 4096" in written
    tables.refresh(path)
    assert path.read_text() == written


@pytest.mark.parametrize(
    "old, new, error, message",
    [
        ("causal=", "masked=", BookError, "masked is not recorded"),
        (" across=seq_len", "", BookError, "across=... is missing"),
        ("float32", "float8", BookError, "no recorded row is like that"),
        (" across", " show=v9_unheard across", BookError, "no recorded row is of v9_unheard"),
        ("<!-- /measured -->", "", BookError, "has no <!-- /measured -->"),
        ("attention", "rope", NotRecorded, "rope"),
    ],
)
def test_a_marker_that_asks_for_what_is_not_there_is_an_error(old, new, error, message):
    with pytest.raises(error, match=message):
        tables.with_tables(TEXT.replace(old, new))


ROWS = "<!-- rows: engine batch=1 columns=runner,weights,tokens_per_s,share_of_limit -->\nold\n<!-- /rows -->\n"


@pytest.fixture
def engine(tmp_path):
    rows = [("naive", 1, 16.0, 0.01), ("early", 1, 1461.4, 0.783), ("peer", 1, 858.0, math.nan), ("early", 16, 13000.0, 0.5), ("tried", 1, math.nan, math.nan)]
    told = {"weights": "bf16", "gpu": "NVIDIA H200", "commit": "0123abcd", "date": "2026-01-02"}
    frame = pandas.DataFrame(rows, columns=["runner", "batch", "tokens_per_s", "share_of_limit"]).assign(**told)
    frame.to_csv(tmp_path / "measured" / "h200" / "engine.csv", index=False)


def test_rows_that_are_no_operations_are_shown_as_they_are(engine):
    assert tables.with_tables(ROWS).splitlines()[1:-1] == [
        "|  | weights | tokens/s | of the limit |",
        "| --- | --- | --- | --- |",
        "| `naive` | bf16 | 16 | 1% |",
        "| `early` | bf16 | 1,461 | 78% |",
        "| `peer` | bf16 | 858 |  |",
        "",
        "Recorded on NVIDIA H200, 2026-01-02, commit 0123abcd.",
    ]


@pytest.mark.parametrize(
    "old, new, message",
    [("columns=runner", "columns=mood", "mood is not recorded"), (" columns=", " runner=", "columns=... is missing"), ("batch=1", "batch=3", "no recorded row"),
     ("<!-- /rows -->", "", "has no <!-- /rows -->")],
)  # fmt: skip
def test_a_marker_of_rows_that_asks_for_what_is_not_there_is_an_error(engine, old, new, message):
    with pytest.raises(BookError, match=message):
        tables.with_tables(ROWS.replace(old, new))
