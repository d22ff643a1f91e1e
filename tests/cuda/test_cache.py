"""The cache of compiled code: what changes its key, and that nothing half-made is ever trusted."""

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from labkernels.cuda import cache
from labkernels.cuda.source import Source
from labkernels.errors import CacheError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKERNELS_CACHE", str(tmp_path / "cache"))


def writer(calls=None, text="compiled"):
    def make(folder: Path):
        if calls is not None:
            calls.append(folder)
        (folder / "kernel.bin").write_text(text)

    return make


def test_a_second_build_finds_the_first():
    calls = []
    first = cache.build("k", writer(calls))
    second = cache.build("k", writer(calls))
    assert first == second and len(calls) == 1
    assert (first / "kernel.bin").read_text() == "compiled"


@pytest.mark.parametrize("damage", ["truncate", "alter", "delete", "manifest", "extra"])
def test_a_damaged_entry_is_not_trusted_and_built_anew(damage):
    folder = cache.build("k", writer())
    file = folder / "kernel.bin"
    if damage == "truncate":
        os.truncate(file, 3)
    elif damage == "alter":
        file.write_text("compileD")
    elif damage == "delete":
        file.unlink()
    elif damage == "manifest":
        os.truncate(folder / cache.MANIFEST, 5)
    else:
        (folder / "kernel.txt").write_text("who wrote this?")
    assert cache.lookup("k") is None
    calls = []
    again = cache.build("k", writer(calls))
    assert len(calls) == 1 and (again / "kernel.bin").read_text() == "compiled"
    assert cache.lookup("k") == again


def test_a_failed_build_leaves_nothing():
    def fail(folder):
        (folder / "kernel.bin").write_text("half")
        raise RuntimeError("the compiler says no")

    with pytest.raises(RuntimeError, match="says no"):
        cache.build("k", fail)
    assert cache.lookup("k") is None
    assert [p.name for p in cache.root().iterdir()] == ["k.lock"]


def _killed_while_building():
    def make(folder):
        (folder / "kernel.bin").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    cache.build("k", make)


def test_a_killed_build_is_neither_trusted_nor_in_the_way():
    process = multiprocessing.get_context("fork").Process(target=_killed_while_building)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert any(p.name.endswith(".unfinished") for p in cache.root().iterdir())
    folder = cache.build("k", writer(), timeout_s=1)
    assert (folder / "kernel.bin").read_text() == "compiled"
    assert not any(p.name.endswith(".unfinished") for p in cache.root().iterdir())


def _build_and_count(log: Path):
    def make(folder):
        with open(log, "a") as file:
            file.write("x")
        time.sleep(0.3)
        (folder / "kernel.bin").write_text("compiled")

    folder = cache.build("k", make)
    assert (folder / "kernel.bin").read_text() == "compiled"


def test_parallel_processes_compile_once(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_build_and_count, args=(tmp_path / "log",)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0] * 4
    assert (tmp_path / "log").read_text() == "x"


def test_a_lock_held_too_long_is_an_error_that_names_its_holder():
    with cache._locked("k", timeout_s=1):
        with pytest.raises(CacheError, match=rf"waited 0.1 s for process {os.getpid()} on "):
            cache.build("k", writer(), timeout_s=0.1)
    cache.build("k", writer(), timeout_s=0.1)


def test_an_unwritable_folder_is_an_error_that_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("LABKERNELS_CACHE", str(tmp_path / "file"))
    with pytest.raises(CacheError, match="LABKERNELS_CACHE"):
        cache.build("k", writer())


def test_entries_unused_for_long_are_deleted_and_used_ones_kept():
    for name in ("old", "used"):
        folder = cache.build(name, writer())
        long_ago = time.time() - (cache.UNUSED_DAYS + 1) * 86400
        os.utime(folder, (long_ago, long_ago))
    cache.lookup("used")
    (cache.root() / "last_cleaned").unlink()
    cache.build("new", writer())
    assert cache.lookup("old") is None
    assert cache.lookup("used") and cache.lookup("new")


SOURCE = Source("__global__ void f() {}")


@pytest.mark.parametrize(
    "other",
    [
        cache.key("emulator", SOURCE, arch="sm_90a"),
        cache.key("nvrtc", SOURCE, arch="sm_90"),
        cache.key("nvrtc", replace(SOURCE, text=SOURCE.text + " "), arch="sm_90a"),
        cache.key("nvrtc", replace(SOURCE, filename="In[3]"), arch="sm_90a"),
        cache.key("nvrtc", replace(SOURCE, first_line=2), arch="sm_90a"),
        cache.key("nvrtc", replace(SOURCE, defines=(("N", "1"),)), arch="sm_90a"),
        cache.key("nvrtc", SOURCE, arch="sm_90a", flags=["-G"]),
        cache.key("nvrtc", SOURCE, arch="sm_90a", files=[Path(__file__)]),
    ],
)
def test_the_key_changes_with_everything_that_matters(other):
    assert other != cache.key("nvrtc", SOURCE, arch="sm_90a")


def test_the_key_changes_with_the_package(monkeypatch):
    before = cache.key("nvrtc", SOURCE)
    monkeypatch.setattr(cache, "_package_version", lambda: "99.0")
    assert cache.key("nvrtc", SOURCE) != before


def test_the_key_is_the_same_for_the_same_input():
    assert cache.key("nvrtc", SOURCE, a=1, b=2) == cache.key("nvrtc", replace(SOURCE), b=2, a=1)


def test_the_key_changes_with_a_header_of_a_header(tmp_path):
    inner = tmp_path / "detail" / "inner.cuh"
    inner.parent.mkdir()
    (tmp_path / "outer.cuh").write_text('#pragma once\n#  include "detail/middle.cuh"\n')
    (tmp_path / "detail" / "middle.cuh").write_text('#include "inner.cuh"\n#include "../outer.cuh"  // a circle\n')
    inner.write_text("constexpr int n = 1;")
    source = Source('#include <outer.cuh>\n#include <cuda_fp16.h>\n', include_dirs=(str(tmp_path),))
    assert [p.name for p in source.headers()] == ["outer.cuh", "middle.cuh", "inner.cuh"]
    before = cache.key("nvrtc", source)
    inner.write_text("constexpr int n = 2;")
    assert cache.key("nvrtc", source) != before
