"""Nsight Compute's counters: those recorded on an H200 against the emulator's, and how its output is read."""

from pathlib import Path

import pandas
import pytest
import torch

import labkernels as lk
from labkernels.cuda import ncu
from labkernels.errors import ToolchainError
from tests.cuda.profiler.kernels import launches

ROOT = Path(__file__).parents[3]
RECORDED = pandas.read_csv(ROOT / "data/measured/h200/profiler.csv")
OUTPUT = (Path(__file__).parent / "ncu_output.csv").read_text()
LAUNCHES = {launch.name: launch for launch in launches("cpu")}

# Where a GPU's compiler makes another program of the source: labkernels/cuda/emulator/README.md tells why.
OTHER_PROGRAM = {
    ("lk_sum_tree_interleaved", "shared_load_wavefronts"), ("lk_sum_tree_interleaved", "shared_load_conflicts"),
    ("lk_diverge", "global_load_requests"), ("lk_diverge", "global_load_sectors"),
    *((f"lk_sum_tree{kind}", f"shared_{access}_requests") for kind in ("", "_interleaved") for access in ("load", "store")),
}  # fmt: skip


def profile_of(name):
    launch = LAUNCHES[name]
    return lk.profile(launch.kernel, launch.grid, launch.block, launch.args)


@pytest.mark.parametrize("name", LAUNCHES)
def test_the_emulator_counts_what_an_h200_counts(name):
    recorded = RECORDED[RECORDED["kernel"] == name].set_index("counter")["ncu"]
    assert list(recorded.index) == list(ncu.METRICS)
    p = profile_of(name)
    for counter, value in recorded.items():
        if (name, counter) not in OTHER_PROGRAM:
            assert getattr(p, counter) == pytest.approx(value, rel=0.02), counter


def test_the_two_differences_are_those_that_the_readme_explains():
    recorded = RECORDED.set_index(["kernel", "counter"])["ncu"]
    tree = profile_of("lk_sum_tree_interleaved")
    # The first step's two loads of 4 bytes, two passes each, for 4 warps of 64 blocks: one load of 8 bytes, in two passes.
    pairs = 4 * 64
    assert tree.shared_load_conflicts - recorded["lk_sum_tree_interleaved", "shared_load_conflicts"] == 2 * pairs
    diverge = profile_of("lk_diverge")
    assert diverge.global_load_requests == 4 * 512 and recorded["lk_diverge", "global_load_requests"] == 7 * 512


def test_the_recorded_file_and_the_readme_tell_the_same():
    text = (ROOT / "labkernels/cuda/emulator/README.md").read_text()
    assert readme_table() in text


def readme_table() -> str:
    """The README's comparison, as Markdown: `emulator / H200` where the two differ."""
    shown = ("global_load_sectors", "global_store_sectors", "shared_load_wavefronts", "shared_load_conflicts", "shared_store_conflicts")
    lines = ["| kernel | " + " | ".join(counter.replace("_", " ") for counter in shown) + " |", "|---|" + "---:|" * len(shown)]
    recorded = RECORDED.set_index(["kernel", "counter"])["ncu"]
    for name in LAUNCHES:
        p = profile_of(name)
        cells = [(getattr(p, counter), recorded[name, counter]) for counter in shown]
        lines.append(f"| `{name}` | " + " | ".join(f"{a}" if a == b else f"{a} / {b}" for a, b in cells) + " |")
    return "\n".join(lines)


def test_the_table_that_ncu_prints_is_read():
    kernels = ncu.parse(OUTPUT)
    assert [name for name, _ in kernels] == ["lk_copy", "lk_transpose_tile", "lk_sum_tree_interleaved"]
    assert kernels[1][1] == {
        "global_load_requests": 512, "global_load_sectors": 2048, "global_store_requests": 512, "global_store_sectors": 2048,
        "shared_load_requests": 512, "shared_load_wavefronts": 16384, "shared_load_conflicts": 15872,
        "shared_store_requests": 512, "shared_store_wavefronts": 512, "shared_store_conflicts": 0,
    }  # fmt: skip


def test_ncu_that_may_not_count_says_what_to_do():
    refused = "==PROF== Connected to process 7\n==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access counters"
    with pytest.raises(ToolchainError, match="NVreg_RestrictProfilingToAdminUsers=0"):
        ncu.parse(refused)
    with pytest.raises(ToolchainError, match="no kernel"):
        ncu.parse("==WARNING== No kernels were profiled.")


def test_without_a_gpu_or_without_ncu_the_message_names_what_is_missing(monkeypatch):
    p = profile_of("lk_copy stride 8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ToolchainError, match="no.* here; the emulator's counters need none"):
        p.with_ncu()
    monkeypatch.setattr(ncu, "_PLACES", ())
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolchainError, match="ncu is not installed"):
        ncu.find_ncu()


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A script in ncu's place that prints the stored output's `kernel` and counts how often it ran."""

    def make(rows: int, status: int = 0, error: str = ""):
        head = OUTPUT.splitlines()
        table = "\n".join(head[: 5 + rows])
        (tmp_path / "table.csv").write_text(table + "\n")
        script = tmp_path / "ncu"
        script.write_text(
            f'#!/bin/sh\nif [ "$1" = --version ]; then echo "Version 0.0 stand-in"; exit; fi\necho run >> {tmp_path}/runs\n'
            + (f'echo "{error}" >&2\n' if error else f"cat {tmp_path}/table.csv\n") + f"exit {status}\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        monkeypatch.setenv("LABKERNELS_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *index: "stand-in")
        ncu._version.cache_clear()
        return tmp_path / "runs"

    yield make
    ncu._version.cache_clear()


def test_ncu_runs_once_for_a_launch_and_both_columns_are_shown(stand_in):
    p = profile_of("lk_copy stride 1")
    runs = stand_in(rows=1)
    both = p.with_ncu()
    assert both.compared.set_index("counter").loc["global_load_sectors"].tolist() == [2048, 2048]
    assert "ncu" in both._repr_html_() and "ncu" in repr(both) and p.ncu is None
    p.with_ncu()
    assert runs.read_text().count("run") == 1
    p.launched.args[0][0] += 1                                               # other contents, another launch
    p.with_ncu()
    assert runs.read_text().count("run") == 2


def test_a_refusal_is_not_kept(stand_in):
    p = profile_of("lk_copy stride 1")
    runs = stand_in(rows=0, status=1, error="==ERROR== ERR_NVGPUCTRPERM")
    for attempt in (1, 2):
        with pytest.raises(ToolchainError, match="may not read"):
            p.with_ncu()
        assert runs.read_text().count("run") == attempt


@pytest.mark.gpu
def test_ncu_on_this_gpu_counts_what_the_emulator_counts():
    launch = LAUNCHES["lk_transpose_tile"]
    try:
        p = lk.profile(launch.kernel, launch.grid, launch.block, tuple(a.cuda() if hasattr(a, "cuda") else a for a in launch.args), ncu=True)
    except ToolchainError as error:
        pytest.skip(str(error))
    for counter, ours, theirs in p.compared.itertuples(index=False):
        assert ours == pytest.approx(theirs, rel=0.02), counter
