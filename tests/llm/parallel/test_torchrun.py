"""`torchrun -m labkernels train`: two processes, one of which is killed; the same command goes on, on one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from typer.testing import CliRunner

from labkernels.cli import app

LIMIT_S = 120


def command(tmp_path, steps):
    return ["train", "--corpus", str(tmp_path / "text"), "--vocab-size", "300", "--steps", str(steps), "--batch-size", "2", "--seq-len", "16",
            "--precision", "float32", "--folder", str(tmp_path / "run"), "--evaluate-batches", "1", "--sample-tokens", "2", "--device", "cpu",
            "--save-every", "20", "--schedule", "constant", "--timeout-s", "60",
            *[word for name in ("embed_dim=16", "num_layers=1", "num_heads=2", "num_kv_heads=2", "ffn_dim=32") for word in ("--model", name)]]  # fmt: skip


def test_a_killed_rank_ends_the_job_with_a_message_and_one_process_goes_on(tmp_path):
    (tmp_path / "text").mkdir()
    for number in range(8):
        (tmp_path / "text" / f"{number}.txt").write_text(f"number {number} " * 300)
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--rdzv-backend", "c10d",
             "--rdzv-endpoint", "localhost:0", "-m", "labkernels", *command(tmp_path, 1_000_000)]  # fmt: skip
    alone = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    output = tmp_path / "output.txt"
    with open(output, "w") as file:
        job = subprocess.Popen(start, stdout=file, stderr=subprocess.STDOUT, env=alone)
    try:
        end = time.monotonic() + LIMIT_S
        while len(list((tmp_path / "run" / "checkpoints").glob("0*"))) < 2:
            assert job.poll() is None and time.monotonic() < end, output.read_text()[-3000:]
            time.sleep(0.05)
        second = next(child for child in psutil.Process(job.pid).children() if child.environ().get("RANK") == "1")
        second.send_signal(signal.SIGKILL)
        assert job.wait(LIMIT_S / 2) != 0
    finally:
        job.kill()
    said = output.read_text()
    assert "rank 0 stops after step" in said and "rank 1 has ended" in said and "goes on from the newest whole checkpoint" in said, said[-3000:]
    last = int(max(path.name for path in (tmp_path / "run" / "checkpoints").glob("0*")).rpartition("-")[2])
    again = CliRunner().invoke(app, command(tmp_path, last + 2), catch_exceptions=False)
    assert again.exit_code == 0 and f"after step {last}" in again.output
    rows = [json.loads(line) for line in Path(tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps[-2:] == [last, last + 1] and steps == sorted(set(steps))
