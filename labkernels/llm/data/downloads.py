"""Files of public corpora from their own homes, checked by size and SHA-256.

A download goes on where it broke off, shows a bar, and takes its place in the cache only when its checksum is right. Without a network it
ends with a message that says what was wanted, from where, where it may be put by hand, and which corpus needs none.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from labkernels.errors import LabKernelsError
from labkernels.llm.survival.files import cache_folder, locked, sha256

TIMEOUT_S = 20.0  # without a byte
ATTEMPTS = 4
_BLOCK = 1 << 20


class DownloadError(LabKernelsError):
    """A file could not be fetched, or is not what it should be."""


@dataclass(frozen=True)
class PublicFile:
    url: str
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


def fetch(file: PublicFile, folder: Path | None = None, *, progress: bool = True) -> Path:
    """The path of `file`, downloaded into `folder` (default: the cache) unless it is there already. Raises DownloadError."""
    folder = folder or cache_folder("downloads", file.sha256[:16])
    path = folder / file.name
    if path.is_file() and path.stat().st_size == file.bytes:
        return path  # it got its name when its checksum had been found right
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f".{file.name}.lock", timeout_s=3600, waiting_for=f"the download of {file.name}"):
            if not (path.is_file() and path.stat().st_size == file.bytes):
                _download(file, path, progress)
    except OSError as error:
        raise DownloadError(f"cannot write {path}: {error}; set LABKERNELS_CACHE to a folder with room for {_size(file.bytes)}") from error
    return path


def _download(file: PublicFile, path: Path, progress: bool) -> None:
    if path.is_file() and sha256(path) == file.sha256:
        return
    unfinished = path.with_name(f".{path.name}.unfinished")
    have = unfinished.stat().st_size if unfinished.is_file() else 0
    if (free := shutil.disk_usage(path.parent).free) < file.bytes - have:
        raise DownloadError(f"{file.name} needs {_size(file.bytes - have)}, and {path.parent} has {_size(free)} free")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _transfer(file, unfinished, progress)
            break
        except (urllib.error.HTTPError, urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
            answered_no = isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500 and error.code not in (408, 416, 429)
            if isinstance(error, urllib.error.HTTPError) and error.code == 416:  # nothing beyond what is here: begin anew
                unfinished.unlink(missing_ok=True)
            unreachable = type(error) is urllib.error.URLError and not unfinished.exists()
            if attempt == ATTEMPTS or answered_no or unreachable:
                raise DownloadError(_no_network(file, path, error)) from error
            time.sleep(min(2.0**attempt, 10.0) / 2)
    if (got := sha256(unfinished)) != file.sha256:
        unfinished.unlink()
        raise DownloadError(f"{file.url} has the SHA-256 {got}, not {file.sha256}: it was altered or replaced; nothing was kept")
    os.replace(unfinished, path)


def _transfer(file: PublicFile, unfinished: Path, progress: bool) -> None:
    """Append what is missing. Raises ConnectionError if the other side ends early."""
    have = unfinished.stat().st_size if unfinished.is_file() else 0
    if have == file.bytes:
        return
    request = urllib.request.Request(file.url, headers={"User-Agent": "labkernels"} | ({"Range": f"bytes={have}-"} if have else {}))
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer, contextlib.ExitStack() as stack:
        if have and answer.status != 206:  # the server sends all of it again
            have = 0
        out = stack.enter_context(open(unfinished, "ab" if have else "wb"))
        bar = stack.enter_context(
            tqdm(total=file.bytes, initial=have, unit="B", unit_scale=True, desc=file.name, disable=None if progress else True)
        )
        while block := answer.read(_BLOCK):
            have += len(block)
            if have > file.bytes:
                unfinished.unlink()
                raise DownloadError(f"{file.url} sends more than the {_size(file.bytes)} it should have; nothing was kept")
            out.write(block)
            bar.update(len(block))
    if have < file.bytes:
        raise ConnectionError(f"the connection ended after {have} of {file.bytes} bytes")


def _no_network(file: PublicFile, path: Path, error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return (
        f"cannot download {file.url} ({_size(file.bytes)}): {reason}. "
        f'Without a network use corpus("stdlib"), which needs none; or put the file at {path} (SHA-256 {file.sha256})'
    )


def _size(bytes: int) -> str:
    return f"{bytes / 1e9:.2f} GB" if bytes >= 1e9 else f"{bytes / 1e6:.1f} MB" if bytes >= 1e5 else f"{bytes} bytes"
