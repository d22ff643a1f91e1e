"""What lab 15 shows of engine.csv: the ladder from its lowest rung, a table by sequences, the seconds of an answer."""

import pandas
import pytest

from labkernels.lab.measured import NotRecorded
from labkernels.llm.inference import recorded


def row(runner="early", weights="bf16", head="bf16", kind="ours", model=recorded.MODEL, batch=1, prompt=64, new=512, rate=1000.0):
    return {
        "model": model, "kind": kind, "runner": runner, "weights": weights, "head": head, "cache": "bf16", "batch": batch, "prompt": prompt, "new": new,
        "tokens_per_s": rate, "ms_per_token": 1000 * batch / rate, "first_token_ms": 5.0, "launches": 82.0, "bytes_per_step": 2.5e9, "peak_gb": 2.6,
        "estimate_gb": 2.5, "share_of_limit": 0.75, "gpu": "NVIDIA H200", "commit": "0123456789ab", "date": "2026-11-21", "note": float("nan"),
    }  # fmt: skip


FRAME = pandas.DataFrame(
    [
        row(rate=1400.0), row("graphs", rate=1100.0), row("naive", rate=16.0), row("compiled", kind="peer", rate=850.0), row(weights="int4", head="int8", rate=2300.0),
        *(row(weights=weights, head=head, batch=batch, prompt=1024, rate=rate * batch)
          for batch in (1, 4) for weights, head, rate in (("bf16", "bf16", 1300.0), ("int4", "int8", 2000.0))),
        row(model="llama-3-8b", rate=270.0), row(prompt=8192, rate=1100.0), row(prompt=32, new=97, rate=1250.0),
    ]
)  # fmt: skip


def test_the_ladder_begins_with_its_lowest_rung_and_ends_with_the_peers():
    rows = recorded.ladder(FRAME)
    assert [*zip(rows["runner"], rows["weights"])] == [("naive", "bf16"), ("graphs", "bf16"), ("early", "bf16"), ("early", "int4"), ("compiled", "bf16")]
    assert "NVIDIA H200" in recorded.table(rows, "runner", "tokens_per_s").to_html()


def test_many_has_a_row_for_each_number_of_sequences():
    wide = recorded.many(FRAME)
    assert wide.index.tolist() == [1, 4]
    assert wide.loc[4, ("prompts of 1024", "int4")] == 8000
    eight = pandas.DataFrame([row(weights="int4", head="int8", batch=4, prompt=1024, rate=9000.0) | {"cache": "int8"}])
    wide = recorded.many(pandas.concat([FRAME, eight]))
    assert wide.loc[4, ("prompts of 1024", "int4")] == 8000 and wide.loc[4, ("prompts of 1024", "int4, cache int8")] == 9000
    html = recorded.table(wide).to_html()
    assert "9,000" in html and "NVIDIA H200" in html and "sequences" in html


def test_rows_with_fewer_at_a_time_than_they_say_are_not_among_many():
    ragged = pandas.DataFrame([row(batch=64, prompt=1024, rate=4000.0) | {"note": "32 of 64 are decoded on average"}])
    assert recorded.many(pandas.concat([FRAME, ragged])).index.tolist() == [1, 4]


def test_other_shapes_are_other_models_and_long_prompts():
    assert recorded.shapes(FRAME)[["model", "prompt"]].values.tolist() == [["llama-3-8b", 64], ["llama-3.2-1b", 8192]]


def test_an_answer_takes_its_first_token_and_a_step_for_each_other():
    (answer,) = recorded.answers(FRAME).to_dict("records")
    assert answer["answer"] == "a short fact"
    assert answer["seconds"] == pytest.approx(0.005 + 96 * 0.0008)
    html = recorded.table(recorded.answers(FRAME)).to_html()
    assert "0.08" in html and "1,250" in html and "NVIDIA H200" in html


def test_where_nothing_is_recorded_that_is_told(monkeypatch, capsys):
    def nothing(name):
        raise NotRecorded(name)

    monkeypatch.setattr(recorded, "recorded", nothing)
    assert recorded.ladder() is recorded.many() is recorded.shapes() is recorded.answers() is None
    assert capsys.readouterr().out.count("not recorded yet") == 4
