"""Checkpoints that are whole or absent: a training that is killed at any moment goes on from the newest whole one.

    store = CheckpointStore("runs/a", keep=3)
    store.save(step, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "data": loader.state_dict(), "rng": rng_state()})
    found = store.load()                    # None in an empty folder; else found.step, found.state; found.skipped names the broken ones

How it holds:
- a checkpoint is a folder, written under a hidden name, brought to the disk (fsync), then renamed: the name appears when all is there
- its manifest has every file's size and SHA-256, and its own: a truncated or altered one is seen, named and passed over
- older ones are deleted only after the new one is in its place; so a full disk costs the new one, never the old
- names count up (`000007-step-3500`), so "newest" is what was saved last, also after going back to an earlier step

`model` is a safetensors file that everybody reads; the rest is read by torch.load(weights_only=True), which runs no code.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from labkernels.errors import ArgumentError
from labkernels.llm.survival.copies import Copies
from labkernels.llm.survival.checkpoint_files import CheckpointError, check, looks_whole, read_state, seal, write_state
from labkernels.llm.survival.files import sync_folder

__all__ = ["Checkpoint", "CheckpointError", "CheckpointStore", "check"]

_NAME = re.compile(r"(\d{6,})-step-(\d+)")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Checkpoint:
    step: int
    folder: Path
    state: dict
    skipped: tuple[str, ...] = ()  # newer ones that are broken, and why


class CheckpointStore:
    """The checkpoints of one training, written by one process. `keep` is how many remain.

    With on_error="warn" a checkpoint that cannot be written is a warning and `save` returns None: training goes on. With "raise" it is a
    CheckpointError.
    """

    def __init__(self, folder: str | Path, keep: int = 3, on_error: str = "raise"):
        if keep < 1:
            raise ArgumentError(f"CheckpointStore: keep must be at least 1, got {keep}")
        if on_error not in ("raise", "warn"):
            raise ArgumentError(f"CheckpointStore: on_error must be 'raise' or 'warn', got {on_error!r}")
        self.folder, self.keep, self.on_error = Path(folder), keep, on_error
        self._copies = Copies()
        self._writer: ThreadPoolExecutor | None = None
        self._pending: Future | None = None

    def save(self, step: int, state: dict, *, background: bool = False) -> Path | None:
        """Write a checkpoint of nested dicts, lists, numbers, strings and tensors; state["model"] is a flat dict of tensors.

        Returns its folder. With `background` the state is copied to the CPU (`Copies`) and written by a thread while training goes on; then None
        is returned, and the next `save`, or `wait`, tells if it failed. Raises CheckpointError (see `on_error`).
        """
        self.wait()
        if background:
            state, ready = self._copies.take(state)
            self._writer = self._writer or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
            self._pending = self._writer.submit(lambda: (ready(), self._save(step, state))[1])
            return None
        return self._told(lambda: self._save(step, state))

    def wait(self) -> Path | None:
        """Until the checkpoint in the background is written."""
        pending, self._pending = self._pending, None
        return None if pending is None else self._told(pending.result)

    @contextlib.contextmanager
    def writing(self, step: int, needed_bytes: int = 0) -> Iterator[Path]:
        """A folder to put files into, which is the checkpoint of `step` when the block ends well. What `save` and sharded checkpoints use:
        the other ranks write into the same folder, and are waited for before the block ends."""
        unfinished = None
        try:
            unfinished, name = self._begin(step, needed_bytes)
            yield unfinished
            self._commit(unfinished, name, step)
        except OSError as error:
            raise self._failure(step, error, needed_bytes) from error
        finally:
            if unfinished is not None:
                shutil.rmtree(unfinished, ignore_errors=True)

    def load(self, step: int | None = None, map_location: str | torch.device = "cpu") -> Checkpoint | None:
        """The newest whole checkpoint, or the newest whole one of `step`; broken ones are warned of and skipped.

        None if there is no checkpoint at all. Raises CheckpointError if there are some and none of them can be read.
        """
        self.wait()
        found = self.find(step)
        if found is None:
            return None
        folder, manifest, skipped = found
        state = read_state(folder, map_location)
        return Checkpoint(manifest["step"], folder, state, tuple(skipped))

    def find(self, step: int | None = None) -> tuple[Path, dict, list[str]] | None:
        """(folder, manifest, what was skipped) of the newest whole checkpoint, every byte of it checked; see `load`."""
        candidates = [folder for folder in self.folders() if step in (None, _step_of(folder))]
        if not candidates:
            if step is None:
                return None
            steps = ", ".join(str(_step_of(folder)) for folder in self.folders()) or "none"
            raise CheckpointError(f"there is no checkpoint of step {step} in {self.folder}; there are those of steps {steps}")
        skipped = []
        for folder in reversed(candidates):
            try:
                manifest = check(folder)
            except CheckpointError as error:
                skipped.append(str(error))
                continue
            if skipped:
                text = "\n  ".join(skipped)
                warnings.warn(f"continuing from {folder}, because newer checkpoints are broken:\n  {text}", stacklevel=3)
            return folder, manifest, skipped
        raise CheckpointError(f"no checkpoint in {self.folder} is whole:\n  " + "\n  ".join(skipped))

    def folders(self) -> list[Path]:
        """All checkpoints by name, oldest first, whole or not."""
        if not self.folder.is_dir():
            return []
        named = [(match, path) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name)) and path.is_dir()]
        return [path for _, path in sorted(named, key=lambda one: int(one[0][1]))]

    def _save(self, step: int, state: dict) -> Path:
        with self.writing(step, _bytes_of(state)) as folder:
            write_state(folder, state)
        return self.folders()[-1]

    def _begin(self, step: int, needed_bytes: int) -> tuple[Path, str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".*.unfinished"):
            process = left.name.split(".")[-2]
            if process.isdecimal() and (int(process) == os.getpid() or not psutil.pid_exists(int(process))):
                shutil.rmtree(left, ignore_errors=True)
        self._prune(self.keep)
        free = shutil.disk_usage(self.folder).free
        if free < needed_bytes and len(self.folders()) == self.keep > 1:
            self._prune(self.keep - 1)  # this one would go anyway
            free = shutil.disk_usage(self.folder).free
        if free < needed_bytes:
            raise OSError(errno.ENOSPC, f"{free / 1e9:.2f} GB are free")
        last = self.folders()[-1:]
        name = f"{int(_NAME.fullmatch(last[0].name)[1]) + 1 if last else 1:06d}-step-{step}"
        unfinished = self.folder / f".{name}.{os.getpid()}.unfinished"
        unfinished.mkdir()
        return unfinished, name

    def _commit(self, unfinished: Path, name: str, step: int) -> None:
        seal(unfinished, step)
        os.rename(unfinished, self.folder / name)  # fails if the name is taken: two processes must not write here
        sync_folder(self.folder)
        self._prune(self.keep)

    def _prune(self, keep: int) -> None:
        """Delete what is older than the newest `keep` whole ones; if none is whole, nothing."""
        whole = [folder for folder in self.folders() if looks_whole(folder)]
        if len(whole) < keep:
            return
        oldest = whole[-keep]
        for folder in self.folders():
            if folder == oldest:
                return
            gone = self.folder / f".{folder.name}.{os.getpid()}.unfinished"  # half deleted it must not carry its name
            with contextlib.suppress(OSError):
                os.rename(folder, gone)
                shutil.rmtree(gone, ignore_errors=True)

    def _told(self, write: Callable[[], Path]) -> Path | None:
        try:
            return write()
        except CheckpointError as error:
            if self.on_error == "raise":
                raise
            warnings.warn(f"{error}; training goes on without it", stacklevel=4)
            return None

    def _failure(self, step: int, error: OSError, needed_bytes: int) -> CheckpointError:
        whole = [folder.name for folder in self.folders() if looks_whole(folder)]
        kept = f"the newest whole one is {whole[-1]}" if whole else "there is none before it"
        if error.errno in _NO_ROOM:
            need = f", it needs {needed_bytes / 1e9:.3g} GB" if needed_bytes else ""
            return CheckpointError(f"no room for the checkpoint of step {step} in {self.folder} ({error.strerror}){need}; {kept}")
        return CheckpointError(f"the checkpoint of step {step} cannot be written to {self.folder}: {error}; {kept}")


def _step_of(folder: Path) -> int:
    return int(_NAME.fullmatch(folder.name)[2])


def _bytes_of(value) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_bytes_of, value.values()))
    return sum(map(_bytes_of, value)) if isinstance(value, (list, tuple)) else 0
