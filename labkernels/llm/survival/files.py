"""Files that are either there and whole, or not there: written beside their place, brought to the disk, renamed.

A rename within one folder is atomic: who opens the name sees the old file or the new one, even if the machine stops in between.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import platformdirs

from labkernels.errors import CacheError


def cache_folder(*names: str) -> Path:
    """A folder in LABKERNELS_CACHE, else in the user's cache folder (`~/.cache/labkernels`). Need not exist yet."""
    folder = os.environ.get("LABKERNELS_CACHE")
    return (Path(folder).expanduser() if folder else platformdirs.user_cache_path("labkernels")).joinpath(*names)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` at the end; if the block raises, `path` is as it was."""
    path = Path(path)
    try:
        made = tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name}.", suffix=".unfinished", delete=False)  # noqa: SIM115
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # the name that whoever reads it knows
    with made as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            readable(Path(file.name))
            os.replace(file.name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(file.name)
            raise
    sync_folder(path.parent)


def write_file(path: Path, content: str | bytes) -> None:
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk, without which a rename can be lost when the machine stops."""
    with contextlib.suppress(OSError):  # some file systems cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def readable(path: Path) -> None:
    """The permissions that an ordinary new file or folder has; those that libraries make beside their place are for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~mask)


@contextlib.contextmanager
def locked(path: Path, timeout_s: float, waiting_for: str) -> Iterator[None]:
    """One process at a time; the operating system opens the lock of one that dies. Raises CacheError after `timeout_s`."""
    with open(path, "a+") as file:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise CacheError(f"waited {timeout_s:g} s for another process with {waiting_for} (lock {path})") from None
                time.sleep(0.05)
        yield  # closing the file opens the lock
