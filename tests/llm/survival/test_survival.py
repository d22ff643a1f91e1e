"""A training that is killed, told to stop, or out of disk ends with the same weights, bit for bit, as one that nothing happened to."""
from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from labkernels.llm.data.shards import TokenDataset, prepare
from labkernels.llm.survival.signals import StopSignals
from tests.llm.survival import survivor


def write_texts(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number in range(40):
        (folder / f"{number}.txt").write_text(f"text {number}: " + "some words of it. " * (number % 7 + 3))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TokenDataset:
    folder = tmp_path_factory.mktemp("data")
    return prepare(write_texts(folder / "texts"), 300, folder=folder / "tokens")


@pytest.fixture(scope="module")
def want(data, tmp_path_factory) -> str:
    """The weights of the training that nothing happens to."""
    return survivor.train(tmp_path_factory.mktemp("whole"), data)


@pytest.fixture(scope="module", params=survivor.HOW)
def way(request, data, tmp_path_factory):
    """(a loop as plain as can be, or the Trainer; the weights it ends with when nothing happens)."""
    train = survivor.HOW[request.param]
    return train, train(tmp_path_factory.mktemp("whole"), data)


@pytest.mark.parametrize("how", survivor.HOW)
def test_killed_at_random_moments_it_comes_through_with_the_same_weights(tmp_path, how):
    write_texts(tmp_path / "texts")
    command = [sys.executable, survivor.__file__, how, str(tmp_path), "7", "15", "15"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(Path(survivor.__file__).parents[3])}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["error"] is None and found["mismatches"] == 0
    assert found["kills"] >= 5 and found["half_written"] >= 1  # 15 and some 6 where nothing else runs


def test_the_digest_sees_a_step_that_is_missing(way, data, tmp_path):
    train, want = way
    assert train(tmp_path, data, steps=survivor.STEPS - 1) != want  # so that the others can fail


def test_a_truncated_newest_checkpoint_costs_one_checkpoint(way, data, tmp_path):
    train, want = way
    train(tmp_path, data, steps=7)
    os.truncate(survivor.store_of(tmp_path).folders()[-1] / "state.pt", 1000)
    with pytest.warns(UserWarning, match="continuing from .*-step-[67], because newer checkpoints are broken:\n  .*-step-7: state.pt is truncated"):
        assert train(tmp_path, data) == want


def test_told_to_stop_it_saves_and_leaves_and_goes_on_from_there(way, data, tmp_path):
    train, want = way
    train(tmp_path, data, after_step=lambda step: step == 4 and os.kill(os.getpid(), signal.SIGTERM))
    assert survivor.store_of(tmp_path).load().step == 5
    assert train(tmp_path, data) == want
    steps = [int(line.split()[0]) for line in (tmp_path / "losses.txt").read_text().splitlines()]
    assert steps == list(range(survivor.STEPS))  # none was done twice


def test_with_a_full_disk_the_old_checkpoint_stays_and_training_ends_as_told(data, want, tmp_path):
    survivor.train(tmp_path, data, steps=3)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(survivor.CheckpointError, match="no room for the checkpoint of step 4 .*newest whole one is .*-step-3"):
            survivor.train(tmp_path, data, after_step=lambda step: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1])))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert survivor.train(tmp_path, data) == want


def test_on_a_disk_that_is_really_full_too(data, want, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system is not permitted here")
    try:
        survivor.train(disk, data, steps=3)
        filler = disk / "filler"
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")

            def fill(step):
                if step in (5, 6, 7):
                    with contextlib.suppress(OSError), open(filler, "ab", buffering=0) as file:
                        while file.write(b"x" * 4096):
                            pass
                elif step == 8:
                    filler.unlink()

            assert survivor.train(disk, data, after_step=fill, on_error="warn", keep=1) == want
        assert [text for text in map(str, (one.message for one in said)) if "no room for the checkpoint" in text]
        assert survivor.CheckpointStore(disk / "run").load().step == survivor.STEPS
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_second_interrupt_interrupts_and_handlers_are_given_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), StopSignals() as stop:
        assert not stop.requested and not stop.anywhere()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested and stop.anywhere() and stop.received is signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_outside_the_main_thread_signals_are_left_alone():
    seen = []

    def work():
        with StopSignals() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=10)
    assert seen == [False]
