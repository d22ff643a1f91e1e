"""A small training that is killed at random moments until it has come through; run by test_survival.py in a process of its own.

    python survivor.py loop|trainer FOLDER SEED KILLS SECONDS      -> a line of JSON: kills, how many of them hit a checkpoint half written, attempts, digests

torch is imported once: every attempt is a fork, which takes milliseconds.
"""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import torch

from labkernels.llm.survival.checkpoint import CheckpointError, CheckpointStore
from labkernels.llm.survival.guard import LossGuard
from labkernels.llm.data.loader import Loader
from labkernels.llm.survival.rng import rng_state, set_rng_state
from labkernels.llm.data.shards import TokenDataset, prepare
from labkernels.llm.survival.signals import StopSignals
from labkernels.llm.training.train import TrainConfig, Trainer

STEPS = 12


def train(folder: Path, data: TokenDataset, steps: int = STEPS, after_step=lambda step: None, **options) -> str:
    """A loop as plain as can be, with all that a step may depend on: data, weights, optimizer, dropout. Returns a digest of the weights."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Embedding(data.vocab_size, 64), torch.nn.Linear(64, 256), torch.nn.Dropout(0.2), torch.nn.ReLU(), torch.nn.Linear(256, data.vocab_size)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader, guard, store = Loader(data["train"], 2, 16, seed=1), LossGuard(), CheckpointStore(folder / "run", **({"keep": 2} | options))
    first = done = 0
    if found := store.load():
        model.load_state_dict(found.state["model"])
        optimizer.load_state_dict(found.state["optimizer"])
        loader.load_state_dict(found.state["data"])
        guard.load_state_dict(found.state["guard"])
        set_rng_state(found.state["rng"])
        first = done = found.step
    with StopSignals() as stop:
        for step in range(first, steps):
            batch = next(loader)
            loss = torch.nn.functional.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            if not guard.check(step, loss).item():
                optimizer.step()
            with open(folder / "losses.txt", "a") as log:
                log.write(f"{step} {loss.item().hex()}\n")
            after_step(step)
            done = step + 1
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "data": loader.state_dict()}
            store.save(done, state | {"guard": guard.state_dict(), "rng": rng_state()}, background=step % 3 == 1)
            if stop.requested:
                break
        store.wait()
    loader.close()
    return write_digest(folder, done, model)


def train_with_trainer(folder: Path, data: TokenDataset, steps: int = STEPS, after_step=lambda step: None) -> str:
    """The same by labkernels.llm.training.train.Trainer, which makes its checkpoints in the background."""
    shape = dict(num_layers=1, embed_dim=32, num_heads=2, num_kv_heads=1, head_dim=16, ffn_dim=64, max_seq_len=32)
    config = TrainConfig(
        preset="10m", model=shape, precision="float32", kernels="torch", device="cpu", seq_len=16, batch_size=2, accumulate=2, warmup=2,
        schedule="constant", steps=steps, save_every=1, keep=2, sample_tokens=2, folder=str(folder / "run"),
    )  # fmt: skip

    class Watched(Trainer):
        def train_step(self):
            found = super().train_step()
            with open(folder / "losses.txt", "a") as log:
                log.write(f"{found['step']} {found['numbers'].read()[0].hex()}\n")
            after_step(found["step"])
            return found

    trainer = Watched(config, data)
    trainer.train()
    return write_digest(folder, trainer.step, trainer.model)


def store_of(folder: Path) -> CheckpointStore:
    """Of either of the two."""
    return CheckpointStore(folder / "run" / "checkpoints" if (folder / "run" / "checkpoints").is_dir() else folder / "run")


def write_digest(folder: Path, done: int, model: torch.nn.Module) -> str:
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()
    (folder / "digest.txt").write_text(f"{done} {digest}")
    return digest


HOW = {"loop": train, "trainer": train_with_trainer}


def attempt(folder: Path, data: TokenDataset, how: str) -> int:
    """The process that trains."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            HOW[how](folder, data)
            code = 0
        except BaseException as error:
            with contextlib.suppress(OSError):
                (folder / "error.txt").write_text(repr(error))
        finally:
            os._exit(code)
    return pid


def main(how: str, folder: Path, seed: int, kills: int, seconds: float) -> dict:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    data = prepare(folder / "texts", 300, folder=folder / "tokens")
    for name in ("warm", "whole"):
        (folder / name).mkdir()
    HOW[how](folder / "warm", data)  # what is imported at first use is here, and not in each attempt
    begun = time.monotonic()
    os.waitpid(attempt(folder / "whole", data, how), 0)  # uninterrupted
    whole_s = time.monotonic() - begun
    want = (folder / "whole" / "digest.txt").read_text()
    draw, killed, half_written, rounds, mismatches = random.Random(seed), 0, 0, 0, 0
    while killed < kills and time.monotonic() - begun < seconds:
        rounds += 1
        here = folder / f"round{rounds}"
        here.mkdir()
        while not (here / "digest.txt").exists() and time.monotonic() - begun < 2 * seconds:
            pid = attempt(here, data, how)
            deadline = time.monotonic() + (draw.uniform(0, whole_s / 2) if killed < kills else 60.0)
            ended = 0
            while not ended and time.monotonic() < deadline:
                ended, status = os.waitpid(pid, os.WNOHANG)
                time.sleep(0.0005)
            if not ended:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                killed += 1
                half_written += any(store_of(here).folder.glob(".*.unfinished"))
            elif status:
                return {"error": (here / "error.txt").read_text()}
        if not (here / "digest.txt").exists():
            return {"error": f"{seconds} s are over: {killed} kills in {rounds} rounds, {whole_s:.2f} s a training"}
        mismatches += (here / "digest.txt").read_text() != want
        losses = {}
        for line in (here / "losses.txt").read_text().splitlines():
            step, loss = line.split()
            mismatches += losses.setdefault(step, loss) != loss  # a step that was done again had the same loss
        mismatches += len(losses) != STEPS
    return {"kills": killed, "half_written": half_written, "rounds": rounds, "mismatches": mismatches, "whole_s": round(whole_s, 3), "error": None}


__all__ = ["HOW", "STEPS", "CheckpointError", "CheckpointStore", "store_of", "train"]

if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))))
