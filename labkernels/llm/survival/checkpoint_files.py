"""The files of a checkpoint: written so that a failure is an OSError, described by a manifest, and checked against it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import re
import time
from pathlib import Path
from typing import BinaryIO

import safetensors.torch
import torch

from labkernels.errors import LabKernelsError
from labkernels.llm.survival.files import readable, sha256, sync_folder

FORMAT = 1


class CheckpointError(LabKernelsError):
    """A checkpoint could not be written or read; the text says which ones are whole."""


def write_state(folder: Path, state: dict) -> None:
    """state["model"], a flat dict of tensors, as safetensors; the rest by torch.save."""
    rest = {name: value for name, value in state.items() if name != "model"}
    if "model" in state:
        _save_tensors({name: value.detach().contiguous() for name, value in state["model"].items()}, folder / "model.safetensors")
    with open(folder / "state.pt", "wb") as file:
        _save_state(rest, file)


def read_state(folder: Path, map_location: str | torch.device) -> dict:
    """What `write_state` wrote, without running any code that could be in it."""
    try:
        state = torch.load(folder / "state.pt", map_location=map_location, weights_only=True) if (folder / "state.pt").is_file() else {}
    except pickle.UnpicklingError as error:
        text = "state.pt holds other things than numbers, text and tensors, and is not read"
        raise CheckpointError(f"{folder.name}: {text}: {error}") from error
    if (folder / "model.safetensors").is_file():
        state["model"] = safetensors.torch.load_file(folder / "model.safetensors", device=str(map_location))
    return state


def seal(folder: Path, step: int) -> None:
    """Bring everything in `folder` to the disk, and write the manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    files = {path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths}
    saved_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    manifest = {"format": FORMAT, "step": step, "saved_at": saved_at, "torch": torch.__version__, "files": files}
    with open(folder / "manifest.json", "w") as file:
        json.dump({**manifest, "sha256": _digest(manifest)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for one in {folder, *(path.parent for path in paths)}:
        sync_folder(one)


def check(folder: Path) -> dict:
    """The manifest of a checkpoint whose every byte is as it was written. Raises CheckpointError that names the file."""
    manifest = read_manifest(folder)
    for name, facts in manifest["files"].items():
        if sha256(folder / name) != facts["sha256"]:
            raise CheckpointError(f"{folder.name}: {name} has been altered: its SHA-256 is not the manifest's")
    return manifest


def read_manifest(folder: Path) -> dict:
    """With the files' sizes compared."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        stated = manifest.pop("sha256")
        if stated != _digest(manifest):
            raise ValueError("it has been altered")
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder.name}: its manifest cannot be read ({error})") from error
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"{folder.name} has format {manifest['format']}, this version reads {FORMAT}")
    for name, facts in manifest["files"].items():
        try:
            size = (folder / name).stat().st_size
        except OSError:
            raise CheckpointError(f"{folder.name}: {name} is missing") from None
        if size != facts["bytes"]:
            what = "is truncated" if size < facts["bytes"] else "is too long"
            raise CheckpointError(f"{folder.name}: {name} {what}, {size} of {facts['bytes']} bytes")
    return manifest


def looks_whole(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except CheckpointError:
        return False
    return True


def _digest(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        safetensors.torch.save_file(tensors, path)
        readable(path)
    except safetensors.SafetensorError as error:  # the system's number stands in its text
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, os.strerror(int(number[1])) if number else str(error)) from error


def _save_state(state: dict, file: BinaryIO) -> None:
    """torch.save, but a write that fails is told as the OSError it was."""

    class Watched:
        error: OSError | None = None

        def write(self, block) -> int:
            try:
                return file.write(block)
            except OSError as error:
                self.error = error
                raise

        def flush(self) -> None:
            file.flush()

    watched = Watched()
    try:
        torch.save(state, watched)
        file.flush()
    except RuntimeError:
        if watched.error is not None:
            raise watched.error from None
        raise
