"""The benchmark of several GPUs runs on the CPU, and its rows say what they must."""

import os
import subprocess
import sys
import time

import pandas
import pytest
import torch

from labkernels.lab.measured import NotRecorded
from labkernels.llm.parallel import ranks, recorded, scaling
from labkernels.llm.data.corpora import corpus
from labkernels.llm.data.shards import prepare

SHAPE = {"vocab_size": 320, "embed_dim": 32, "head_dim": 8, "num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 64, "max_seq_len": 64}


def rows(data):
    changes = {"preset": "10m", "model": SHAPE, "seq_len": 32, "batch_size": 2, "device": "cpu", "precision": "float32"}
    return [scaling.measure(mode, data, 2, **changes) for mode in scaling.MODES], scaling.measure_collectives(torch.device("cpu"), [1], repeats=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for number in range(20):
        (folder / f"{number}.txt").write_text(f"{number} and so it goes on. " * 30)
    return prepare(corpus(folder), 300, folder=tmp_path_factory.mktemp("tokens") / "tokens", progress=False)


def test_every_mode_and_every_collective_has_its_row(data):
    (first, collectives), (second, _) = ranks.run(rows, 2, data)
    assert second == [None] * len(scaling.MODES) and [row["row"] for row in first] == list(scaling.MODES)
    assert set(scaling.ROWS) == {*scaling.MODES, "collectives"}
    by_name = {row["row"]: row for row in first}
    for name, tokens in (("alone", 64), ("apart", 128), ("ddp", 128), ("fsdp", 128), ("tensor", 64), ("alone_fp8", 64), ("ddp_fp8", 128)):
        assert by_name[name]["tokens_per_s"] * by_name[name]["ms_per_step"] / 1000 - tokens < 1e-6 * tokens
    assert scaling.disagreements(first, 1e-4) == []
    by_name["fsdp"]["loss"] = float("nan")
    assert len(scaling.disagreements(first)) == 1
    by_name["fsdp"]["loss"] = 1.0
    for name, base in (("ddp", "alone"), ("ddp_fp8", "alone_fp8")):
        share = by_name[name]["tokens_per_s"] / by_name[base]["tokens_per_s"]
        assert scaling.efficiency(by_name[name], first) == share / 2 and scaling.efficiency(by_name[base], first) == 1
    assert by_name["ddp"]["sent_gb_per_step"] > 0 == by_name["alone"]["sent_gb_per_step"]
    assert [(row["collective"], row["sent_mb"]) for row in collectives] == [("all_reduce", 1), ("all_gather", 0.5), ("reduce_scatter", 0.5)]


def failing(data):
    changes = {"preset": "10m", "model": SHAPE, "batch_size": 2, "device": "cpu", "precision": "float32"}
    if torch.distributed.get_rank() == 1:  # the others do not wait for it
        first = scaling.measure("alone", data, 1, seq_len=32, **changes)
    else:
        first = scaling.measure("alone", data, 1, seq_len=SHAPE["max_seq_len"] + 1, **changes)
    return first, scaling.measure("ddp", data, 1, seq_len=32, **changes)


def test_a_row_that_fails_is_told_and_costs_no_other(data, capsys):
    (first, ddp), _ = ranks.run(failing, 2, data)
    assert first is None and ddp["row"] == "ddp" and ddp["loss"] > 0
    assert "alone: failed on rank 0: ArgumentError: Trainer: seq_len is 65" in capsys.readouterr().out


def test_a_row_that_does_not_end_ends_the_job_and_one_that_ends_does_not(monkeypatch):
    said = []
    monkeypatch.setattr(scaling, "leave", said.append)
    with scaling._within(30.0, "fsdp"):
        pass
    with scaling._within(0.01, "ddp"):
        end = time.monotonic() + 10
        while not said and time.monotonic() < end:
            time.sleep(0.01)
    assert len(said) == 1 and "ddp has not ended" in said[0]


@pytest.mark.gpu
def test_on_two_gpus_all_ways_end_with_the_same_loss(tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "labkernels.llm.parallel.scaling", "--preset", "10m",
               "--seq-len", "512", "--batch-size", "8", "--steps", "4", "--largest-mb", "16", "--budget", "150", "--record", str(tmp_path)]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, env=os.environ | {"NCCL_NVLS_ENABLE": "0"}, check=False)
    assert result.returncode == 0 and "WRONG" not in result.stdout, result.stdout[-3000:] + result.stderr[-3000:]
    assert set(pandas.read_csv(tmp_path / "scaling_2.csv")["row"]) == set(scaling.MODES)


def test_what_was_recorded_is_shown_and_what_is_missing_is_told(capsys, monkeypatch, tmp_path):
    def found(name):
        if not name.endswith("_2"):
            raise NotRecorded(name)
        return tmp_path / f"{name}.csv"

    where = {"gpu": "NVIDIA H200", "commit": "0123456789ab", "date": "2026-11-22"}
    rows = [{"collective": name, "gpus": 2, "mb": mb, "bus_gb_per_s": 10.0 * mb} | where for mb in (1, 16) for name in ("all_reduce", "all_gather")]
    pandas.DataFrame(rows).to_csv(tmp_path / "collectives_2.csv", index=False)
    monkeypatch.setattr(recorded, "measured_file", found)
    shown = recorded.links()
    assert shown.data.columns.tolist() == ["all_reduce, 2 GPUs", "all_gather, 2 GPUs"] and shown.data.loc[16, "all_gather, 2 GPUs"] == 160
    assert capsys.readouterr().out == "", "some are recorded: nothing is missing"
    assert recorded.links((4,)) is None and "torchrun --nproc-per-node 4" in capsys.readouterr().out
