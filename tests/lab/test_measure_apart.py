"""Measuring in a second process: who hangs or dies costs a row, and the others are measured."""

import os
import threading
import time

import pytest
import torch

from labkernels.errors import ArgumentError
from labkernels.lab.measure import Entry, empty_row
from labkernels.lab.measure_apart import measure_apart
from labkernels.operation import ops

SUM = ops["sum"]
POINTS = [(torch.float32, {"n": n}) for n in (10, 20)]


def fake_timer(op, entry, dtype, shape, ceilings, budget_ms=0.0):
    entry.fn(torch.ones(shape["n"]))
    return empty_row(op, entry, dtype, shape, "") | {"ms": ceilings * shape["n"], "date": os.getpid()}


def measured(*functions, time_limit_s=20.0):
    entries = [Entry.of(SUM, function) for function in functions]
    rows = measure_apart(SUM, entries, POINTS, time_limit_s, device="cpu", timer=fake_timer, ceilings=lambda: 0.5)
    assert [(row["variant"], row["n"]) for row in rows] == [(entry.name, shape["n"]) for _, shape in POINTS for entry in entries]
    return rows


def test_each_point_and_entry_is_measured_in_one_other_process():
    def mine(x):
        return x.sum()

    rows = measured("v1_naive", mine)
    assert [row["ms"] for row in rows] == [5, 5, 10, 10] and [row["kind"] for row in rows[:2]] == ["ours", "yours"]
    assert len({row["date"] for row in rows}) == 1 and rows[0]["date"] != os.getpid()


def test_one_that_hangs_is_left_out_and_the_others_are_measured():
    def endless(x):
        while len(x):
            time.sleep(0.01)

    rows = measured(torch.sum, endless, time_limit_s=2)
    assert [row["ms"] > 0 for row in rows] == [True, False, True, False]
    assert [row["note"] for row in rows] == ["", "ended: no answer within 2 s", "", "left out: it had to be ended before"]


def test_the_process_after_one_that_was_ended_is_like_this_one_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def crashes(x):
        os.abort()

    def says_where(x):
        assert os.getcwd() == str(tmp_path)

    assert [row["ms"] > 0 for row in measured(crashes, says_where)] == [False, True, False, True]


def test_one_that_crashes_is_left_out_and_the_others_are_measured():
    def crashes(x):
        os.abort()

    rows = measured(crashes, torch.sum)
    assert [row["ms"] > 0 for row in rows] == [False, True, False, True]
    assert rows[0]["note"] == "ended: SIGABRT: Aborted"


def test_what_it_raises_is_raised():
    def refuses(x):
        raise ArgumentError("not this one")

    with pytest.raises(ArgumentError, match="^not this one$"):
        measured(refuses)


def test_one_that_cannot_be_sent_is_refused_with_the_way_out():
    lock = threading.Lock()
    with pytest.raises(ArgumentError, match="bench: locked cannot be sent .*isolated=False"):
        measured(Entry.of(SUM, torch.sum).fn, _named("locked", lambda x: lock))


def _named(name, function):
    function.__name__ = name
    return function
