"""Long work shows a bar to whoever watches, and nothing in a notebook that is executed or graded."""

import time
from types import SimpleNamespace

import IPython
import pytest

from labkernels.lab import progress as module
from labkernels.lab.progress import progress, watched


@pytest.fixture
def allow_stdin(monkeypatch):
    def set_to(value):
        monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=value)))

    return set_to


def test_only_a_cell_that_may_ask_for_input_is_watched(allow_stdin, monkeypatch):
    monkeypatch.setattr(IPython, "get_ipython", lambda: None)
    assert not watched()
    allow_stdin(False)
    assert not watched()
    allow_stdin(True)
    assert watched()


@pytest.mark.parametrize("person", [True, False])
@pytest.mark.parametrize("pause_s, long", [(0, False), (0.05, True)])
def test_the_bar_comes_for_long_work_and_for_a_person_only(allow_stdin, monkeypatch, capsys, person, pause_s, long):
    allow_stdin(person)
    monkeypatch.setattr(module, "PATIENCE_S", 0.15)
    seen = []
    for item in progress(range(8), "check softmax"):
        seen.append(item)
        time.sleep(pause_s)
    shown = capsys.readouterr()
    assert seen == list(range(8)) and shown.out == ""
    assert ("check softmax" in shown.err) == (person and long)
