"""Compiled code on disk, so that nothing is compiled twice.

    key = cache.key("emulator", source, files=[...], name="softmax", compiler="g++ 13.2.0", flags=["-O2"], cpu=cache.host_cpu())
    folder = cache.build(key, make)      # make(folder) writes the files, only if no trustworthy ones are there
    folder = cache.lookup(key)           # the same without building: a folder, or None

An entry is a folder named by a hash of everything that matters. It appears at once and complete (built beside its place, then
renamed), with a manifest of its files' sizes and hashes, which are compared at every lookup: a truncated or altered file is found
and the entry built anew. One process builds an entry while others wait at its lock; the operating system releases the lock of a
process that dies, and what it left unfinished is removed by the next. Entries unused for 90 days are deleted.

The folder is `LABKERNELS_CACHE`, else the user's cache folder (`~/.cache/labkernels`).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import platformdirs

from labkernels.cuda.source import Source
from labkernels.errors import CacheError

MANIFEST = "manifest.json"
UNUSED_DAYS = 90
_FORMAT = 1  # raise it when the layout of entries changes


def root() -> Path:
    """The folder that holds all entries; it need not exist yet."""
    folder = os.environ.get("LABKERNELS_CACHE")
    return (Path(folder).expanduser() if folder else platformdirs.user_cache_path("labkernels")) / "compiled"


def key(kind: str, source: Source, *, files: Iterable[Path] = (), **facts) -> str:
    """The name of an entry: a hash over the source, the project headers it includes, `files`' contents, and `facts`.

    `facts` are values that JSON can hold: compiler and version, flags, architecture, name of the kernel.
    """
    contents = {str(path): _hash_file(path) for path in [*source.headers(), *files]}
    everything = {
        "format": _FORMAT,
        "package": _package_version(),
        "kind": kind,
        "source": [source.text, source.filename, source.first_line, source.defines],
        "files": contents,
        "facts": facts,
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:40]


def lookup(key: str) -> Path | None:
    """The folder of entry `key` if it is there, whole and unaltered, else None."""
    folder = root() / key
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest != _manifest(folder):
            return None
        os.utime(folder)
    except (OSError, ValueError):
        return None
    return folder


def build(key: str, make: Callable[[Path], None], *, timeout_s: float = 300.0) -> Path:
    """The folder of entry `key`, made by `make(folder)` if it is not there yet.

    `make` writes its files into the folder that it is given. If it raises, nothing is kept and the exception goes on. Raises
    CacheError if the cache cannot be written, or if another process holds the entry's lock for longer than `timeout_s`.
    """
    if found := lookup(key):
        return found
    with _locked(key, timeout_s):
        if found := lookup(key):  # another process made it while we waited
            return found
        _remove_leftovers(key)
        unfinished = Path(tempfile.mkdtemp(prefix=f"{key}.", suffix=".unfinished", dir=root()))
        try:
            make(unfinished)
            (unfinished / MANIFEST).write_text(json.dumps(_manifest(unfinished)))
            os.replace(unfinished, root() / key)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    _delete_unused()
    return root() / key


@functools.cache
def host_cpu() -> str:
    """This machine's processor and its instruction sets, for code compiled with -march=native."""
    lines = []
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as cpuinfo:
        for line in cpuinfo:
            if line.startswith(("model name", "flags", "Features", "CPU part")):
                lines.append(line.strip())
            if not line.strip():
                break  # the first processor is like the others
    return " ".join([platform.machine(), *lines])


def _manifest(folder: Path) -> dict:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {str(p.relative_to(folder)): _hash_file(p) for p in files}


def _hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _package_version() -> str:
    try:
        return version("labkernels")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "source"


@contextlib.contextmanager
def _locked(key: str, timeout_s: float) -> Iterator[None]:
    path = root() / f"{key}.lock"
    try:
        root().mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")
    except OSError as error:
        raise CacheError(f"cannot write compiled code to {root()}: {error}; set LABKERNELS_CACHE to a folder of your own") from error
    with file:
        _wait_for_lock(file, path, timeout_s)
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}")
        file.flush()
        yield  # closing the file releases the lock


def _wait_for_lock(file, path: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.seek(0)
                raise CacheError(
                    f"waited {timeout_s:g} s for process {file.read() or '(unknown)'}, which is compiling the same kernel; "
                    f"if it hangs, end it, and its lock on {path} goes with it"
                ) from None
            time.sleep(0.02)
        except OSError as error:
            raise CacheError(f"cannot lock {path}: {error}; set LABKERNELS_CACHE to a folder on a local disk") from error


def _remove_leftovers(key: str) -> None:
    for folder in [root() / key, *root().glob(f"{key}.*.unfinished")]:
        shutil.rmtree(folder, ignore_errors=True)


def _delete_unused() -> None:
    """Once a day, delete entries that nobody has looked up for UNUSED_DAYS."""
    stamp = root() / "last_cleaned"
    with contextlib.suppress(OSError):
        if stamp.exists() and time.time() - stamp.stat().st_mtime < 86400:
            return
        stamp.touch()
        for path in root().iterdir():
            if time.time() - path.stat().st_mtime > UNUSED_DAYS * 86400:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
