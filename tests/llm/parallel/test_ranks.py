"""Processes that talk: what they return, print and raise comes back; nobody waits for ever, whatever happens to one of them."""

import os
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist

from labkernels.errors import ArgumentError
from labkernels.llm.parallel import rank_watch, ranks


def test_results_and_prints_come_in_the_order_of_ranks(capfd):
    def function(base):
        x = torch.tensor([float(dist.get_rank())])
        time.sleep(0.1 * (1 - dist.get_rank()))  # the first is the last
        dist.all_reduce(x)
        print("rank", dist.get_rank())
        return base + dist.get_rank(), x.item()

    assert ranks.run(function, 2, 10) == [(10, 1.0), (11, 1.0)]
    assert capfd.readouterr().out == "rank 0\nrank 1\n"


def test_what_a_rank_raises_is_raised_and_not_what_the_others_say_of_it():
    def function():
        if dist.get_rank() == 1:
            raise KeyError("here")
        dist.all_reduce(torch.ones(1))

    with pytest.raises(KeyError, match="here") as caught:
        ranks.run(function, 3, timeout_s=20)
    assert caught.value.__notes__ == ["(in rank 1 of 3)"]


def test_a_rank_that_ends_or_hangs_is_told():
    with pytest.raises(ranks.RankError, match="rank 1 ended without a result"):
        ranks.run(lambda: os._exit(3) if dist.get_rank() else None, 2, timeout_s=20)
    begun = time.monotonic()
    with pytest.raises(ranks.RankError, match="rank 1 had no result after 1 s"):
        ranks.run(lambda: time.sleep(60) if dist.get_rank() else None, 2, timeout_s=1)
    assert time.monotonic() - begun < 5
    with pytest.raises(ArgumentError, match="count must be at least 1"):
        ranks.run(print, 0)


def test_a_rank_that_waits_for_ever_is_ended_when_another_is_gone(capfd, monkeypatch):
    monkeypatch.setattr(rank_watch, "LOOK_S", 0.05)
    other = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    here = os.uname().nodename
    child = os.fork()
    if child == 0:
        watch = rank_watch.RankWatch([(here, os.getpid()), (here, other.pid)], lambda: f"gone: {watch.gone()}", grace_s=0.1)
        with watch:
            time.sleep(60)
        os._exit(0)
    time.sleep(0.3)
    assert os.waitpid(child, os.WNOHANG) == (0, 0), "both live"
    other.kill()
    begun = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1 and time.monotonic() - begun < 5
    assert "gone: [1]" in capfd.readouterr().err
    other.wait()
