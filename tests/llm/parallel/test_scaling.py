"""The benchmark of several GPUs runs on the CPU, and its rows say what they must."""

import os
import subprocess
import sys

import pandas
import pytest
import torch

from labkernels.llm.parallel import ranks, scaling
from labkernels.llm.data.corpora import corpus
from labkernels.llm.data.shards import prepare

SHAPE = {"vocab_size": 320, "embed_dim": 32, "head_dim": 8, "num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 64, "max_seq_len": 64}


def rows(data):
    changes = {"preset": "10m", "model": SHAPE, "seq_len": 32, "batch_size": 2, "device": "cpu", "precision": "float32"}
    return [scaling.measure(mode, data, 2, **changes) for mode in scaling.MODES], scaling.measure_collectives(torch.device("cpu"), [1], repeats=2)


def test_every_mode_and_every_collective_has_its_row(tmp_path):
    (tmp_path / "text").mkdir()
    for number in range(20):
        (tmp_path / "text" / f"{number}.txt").write_text(f"{number} and so it goes on. " * 30)
    data = prepare(corpus(tmp_path / "text"), 300, folder=tmp_path / "tokens", progress=False)
    (first, collectives), (second, _) = ranks.run(rows, 2, data)
    assert second == [None] * 5 and [row["row"] for row in first] == list(scaling.MODES)
    by_name = {row["row"]: row for row in first}
    for name, tokens in (("alone", 64), ("apart", 128), ("ddp", 128), ("fsdp", 128), ("tensor", 64)):
        assert by_name[name]["tokens_per_s"] * by_name[name]["ms_per_step"] / 1000 - tokens < 1e-6 * tokens
    assert scaling.disagreements(first, 1e-4) == []
    by_name["fsdp"]["loss"] = float("nan")
    assert len(scaling.disagreements(first)) == 1
    by_name["fsdp"]["loss"] = 1.0
    assert by_name["ddp"]["sent_gb_per_step"] > 0 == by_name["alone"]["sent_gb_per_step"]
    assert [(row["collective"], row["sent_mb"]) for row in collectives] == [("all_reduce", 1), ("all_gather", 0.5), ("reduce_scatter", 0.5)]


@pytest.mark.gpu
def test_on_two_gpus_all_ways_end_with_the_same_loss(tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "labkernels.llm.parallel.scaling", "--preset", "10m",
               "--seq-len", "512", "--batch-size", "8", "--steps", "4", "--largest-mb", "16", "--record", str(tmp_path)]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, env=os.environ | {"NCCL_NVLS_ENABLE": "0"}, check=False)
    assert result.returncode == 0 and "WRONG" not in result.stdout, result.stdout[-3000:] + result.stderr[-3000:]
    assert set(pandas.read_csv(tmp_path / "scaling_2.csv")["row"]) == set(scaling.MODES)
