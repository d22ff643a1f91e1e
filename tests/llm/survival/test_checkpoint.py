"""Checkpoints hold everything, are whole or named as broken, and a failure to write one costs no other."""
from __future__ import annotations

import errno
import json
import os
import pickle
import random
import shutil
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch

from labkernels.errors import ArgumentError
from labkernels.llm.survival import checkpoint
from labkernels.llm.survival.checkpoint import CheckpointError, CheckpointStore, check
from labkernels.llm.survival.copies import Copies
from labkernels.llm.survival.rng import rng_state, set_rng_state


def state(value: float, size: int = 100) -> dict:
    return {
        "model": {"weight": torch.full((size,), value), "half": torch.full((3, 2), value, dtype=torch.bfloat16).t()},
        "optimizer": {"state": {0: {"step": torch.tensor(value), "moment": torch.full((size,), -value)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "data": {"position": int(value), "seed": 0},
    }


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "run", keep=3)
    for step in (1, 2, 3):
        store.save(step, state(step))
    return store


def load(store, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return store.load(**options)


def value_of(found) -> float:
    values = {found.state["model"]["weight"][0].item(), -found.state["optimizer"]["state"][0]["moment"][-1].item(), found.state["data"]["position"]}
    assert len(values) == 1
    return values.pop()


def test_everything_comes_back(store):
    found = store.load()
    assert found.step == 3 and found.skipped == () and value_of(found) == 3
    assert found.state["model"]["half"].dtype == torch.bfloat16 and found.state["model"]["half"].shape == (2, 3)
    assert found.state["optimizer"]["param_groups"] == [{"lr": 0.1, "params": [0]}]
    assert safetensors.torch.load_file(found.folder / "model.safetensors").keys() == {"weight", "half"}
    assert value_of(store.load(step=1)) == 1


def test_an_empty_folder_has_none(tmp_path):
    assert CheckpointStore(tmp_path / "nothing").load() is None
    with pytest.raises(CheckpointError, match="no checkpoint of step 7"):
        CheckpointStore(tmp_path / "nothing").load(step=7)


def test_random_numbers_continue_where_they_were(store):
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    np.random.randn(), random.gauss(0, 1), torch.randn(5)
    store.save(4, state(4) | {"rng": rng_state()})

    def draw():
        return [random.random(), random.gauss(0, 1), np.random.randn(), np.random.randint(9), *torch.randn(4).tolist()]

    want = draw()
    draw()
    set_rng_state(store.load().state["rng"])
    assert draw() == want


def test_the_last_few_remain(store):
    store.save(4, state(4)), store.save(5, state(5))
    assert [folder.name for folder in store.folders()] == ["000003-step-3", "000004-step-4", "000005-step-5"]
    assert sorted(os.listdir(store.folder)) == [folder.name for folder in store.folders()]


def test_the_newest_is_what_was_saved_last_also_after_going_back(store):
    store.save(2, state(20))
    assert store.load().step == 2 and value_of(store.load()) == 20
    store.save(3, state(30)), store.save(4, state(40))
    assert [checkpoint._step_of(folder) for folder in store.folders()] == [2, 3, 4]


DAMAGES = {
    "truncated model": (lambda folder: os.truncate(folder / "model.safetensors", 50), "model.safetensors is truncated, 50 of"),
    "truncated state": (lambda folder: os.truncate(folder / "state.pt", 0), "state.pt is truncated"),
    "longer state": (lambda folder: open(folder / "state.pt", "ab").write(b"\0"), "state.pt is too long"),
    "missing state": (lambda folder: os.unlink(folder / "state.pt"), "state.pt is missing"),
    "altered model": (lambda folder: flip(folder / "model.safetensors", -1), "model.safetensors has been altered"),
    "altered state": (lambda folder: flip(folder / "state.pt", 500), "state.pt has been altered"),
    "truncated manifest": (lambda folder: os.truncate(folder / "manifest.json", 40), "its manifest cannot be read"),
    "empty manifest": (lambda folder: os.truncate(folder / "manifest.json", 0), "its manifest cannot be read"),
    "no manifest": (lambda folder: os.unlink(folder / "manifest.json"), "its manifest cannot be read"),
    "altered manifest": (lambda folder: edit(folder / "manifest.json"), "it has been altered"),
    "empty folder": (lambda folder: (shutil.rmtree(folder), folder.mkdir()), "its manifest cannot be read"),
}


def flip(path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


def edit(path) -> None:
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"step": 7}))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_one_is_named_and_the_one_before_is_taken(store, damage):
    make, reason = DAMAGES[damage]
    make(store.folders()[-1])
    with pytest.warns(UserWarning, match=f"continuing from .*000002-step-2, because newer checkpoints are broken:\n  000003-step-3.*{reason}"):
        found = store.load()
    assert found.step == 2 and value_of(found) == 2 and len(found.skipped) == 1 and reason in found.skipped[0]
    store.save(3, state(33))  # going on from there
    assert store.load().step == 3 and value_of(store.load()) == 33


def test_if_none_is_whole_that_is_an_error_and_not_a_new_start(store):
    for folder in store.folders():
        os.truncate(folder / "model.safetensors", 10)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole:\n  000003-step-3.*\n  000002-step-2.*\n  000001-step-1"):
        store.load()


def test_a_broken_one_does_not_count_among_those_that_remain(store):
    os.truncate(store.folders()[-1] / "state.pt", 1)
    store.save(4, state(4))
    assert [checkpoint._step_of(folder) for folder in store.folders()] == [1, 2, 3, 4] and load(store).step == 4
    store.save(5, state(5))
    assert [checkpoint._step_of(folder) for folder in store.folders()] == [2, 3, 4, 5]


WRITERS = ["safetensors.torch.save_file", "torch.save", "os.fsync", "json.dump", "os.rename", "os.mkdir"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("writer", WRITERS)
def test_whatever_fails_while_writing_the_old_ones_stay(store, monkeypatch, writer, number):
    before = sorted(os.listdir(store.folder))

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writer, fail)
    says = r"cannot be written" if number == errno.EIO else "no room for the checkpoint of step 4"
    with pytest.raises(CheckpointError, match=f"{says}.*the newest whole one is 000003-step-3"):
        store.save(4, state(4))
    monkeypatch.undo()
    assert sorted(os.listdir(store.folder)) == before and store.load().step == 3
    store.save(4, state(4))
    assert store.load().step == 4


def test_training_goes_on_or_ends_as_told(store, monkeypatch):
    store.on_error = "warn"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.warns(UserWarning, match="no room for the checkpoint of step 4.*0.00 GB are free.*training goes on without it"):
        assert store.save(4, state(4)) is None
    monkeypatch.undo()
    assert store.save(5, state(5)) is not None and store.load().step == 5
    with pytest.raises(ArgumentError, match="on_error must be"):
        CheckpointStore(store.folder, on_error="ignore")


def test_room_is_made_by_the_one_that_would_go_anyway(store, monkeypatch):
    class Usage:
        def __init__(self, path):
            self.free = 10_000 if len(os.listdir(path)) < 3 else 10

    monkeypatch.setattr(shutil, "disk_usage", Usage)
    assert store.save(4, state(4)) is not None
    assert [checkpoint._step_of(folder) for folder in store.folders()] == [2, 3, 4]


def test_a_mistake_in_the_state_is_no_full_disk(store):
    shared = torch.zeros(10)
    with pytest.raises(RuntimeError, match="share memory"):
        store.save(4, {"model": {"a": shared, "b": shared}})
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        store.save(4, {"model": {}, "bad": lambda: 0})
    assert store.load().step == 3 and len(os.listdir(store.folder)) == 3


def test_in_the_background_it_holds_what_was_there_when_it_was_asked(store):
    later = state(4, size=200_000)
    assert store.save(4, later, background=True) is None
    later["model"]["weight"].fill_(99)
    later["optimizer"]["state"][0]["moment"].fill_(99)
    assert store.wait() == store.folders()[-1] and value_of(store.load()) == 4


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_copy_is_of_what_was_there_whatever_is_done_next(device):
    copies, x = Copies(), torch.ones(1 << 20, device=device)
    taken, ready = copies.take({"a": [x, 3], "b": {"t": x.view(1024, 1024).t()}})
    x.fill_(2.0)
    ready()
    assert taken["a"][0].eq(1).all() and taken["a"][1] == 3 and taken["b"]["t"].eq(1).all() and taken["a"][0].device.type == "cpu"
    again, ready = copies.take({"a": [x, 3]})
    ready()
    assert again["a"][0].eq(2).all()
    if device == "cuda":
        assert taken["a"][0].is_pinned() and again["a"][0].data_ptr() == taken["a"][0].data_ptr(), "locked once"


def test_what_fails_in_the_background_is_told_at_the_next(store, monkeypatch):
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    store.save(4, state(4), background=True)
    with pytest.raises(CheckpointError, match="no room for the checkpoint of step 4"):
        store.save(5, state(5))
    monkeypatch.undo()
    assert store.save(5, state(5)) is not None


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_writes_is_not(store):
    dead, living = store.folder / ".000004-step-4.4194304.unfinished", store.folder / f".000004-step-4.{os.getppid()}.unfinished"
    foreign = store.folder / ".notes.unfinished"  # not ours, to be read or removed
    for folder in (dead, living, foreign):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    assert store.load().step == 3
    store.save(4, state(4))
    assert not dead.exists() and living.exists() and foreign.exists()


def test_sharded_files_of_several_writers_are_one_checkpoint(store):
    with store.writing(4) as folder:
        (folder / "shards").mkdir()
        for rank in range(3):
            (folder / "shards" / f"{rank}.bin").write_bytes(bytes([rank]) * 100)
        assert store.find()[0].name == "000003-step-3"  # not there before the block ends
    found, manifest, skipped = store.find()
    assert manifest["step"] == 4 and len(manifest["files"]) == 3 and skipped == []
    os.truncate(found / "shards" / "1.bin", 5)
    with pytest.raises(CheckpointError, match="shards/1.bin is truncated"):
        check(found)


def test_no_code_runs_when_a_state_is_read(store, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    with store.writing(4) as folder:
        torch.save({"x": Attack()}, folder / "state.pt")
    with pytest.raises(CheckpointError, match="state.pt holds other things than numbers, text and tensors"):
        store.load()
    assert not (tmp_path / "attacked").exists()


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ArgumentError, match="keep must be at least 1"):
        CheckpointStore(tmp_path, keep=0)
