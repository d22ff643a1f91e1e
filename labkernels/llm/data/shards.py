"""A corpus becomes tokens on disk, once; labkernels.llm.data.token_dataset reads them.

    data = prepare(corpus("stdlib", max_bytes=4_000_000), vocab_size=4096)      seconds; the second time nothing
    data.tokenizer, data.vocab_size, data["train"].tokens, data["validation"].documents

The folder holds tokenizer.json, manifest.json and, for each split, shards of whole documents: `train-00000.tokens.npy` (uint16, or uint32
where the vocabulary has more than 65536) and `train-00000.starts.npy` (where each document begins, and the end).
A document's split is decided by a hash of its text: copies never stand on both sides, and more text moves no document across.
No more than one shard is in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers
from tqdm import tqdm

from labkernels.errors import ArgumentError, CacheError
from labkernels.llm.data.corpora import Corpus, Document, corpus
from labkernels.llm.survival.files import cache_folder, locked, readable, sha256, sync_folder, write_file
from labkernels.llm.data.token_dataset import FORMAT, SPLITS, TokenDataset
from labkernels.llm.data.tokenizer import Tokenizer

__all__ = ["TokenDataset", "prepare", "split_documents"]

_BATCH_BYTES = 2 << 20  # text tokenised at once, by all cores


def prepare(
    source: Corpus | str | Path = "stdlib",
    vocab_size: int = 8192,
    *,
    tokenizer: Tokenizer | None = None,
    folder: str | Path | None = None,
    validation_fraction: float = 0.05,
    tokenizer_bytes: int = 8 << 20,
    shard_tokens: int = 1 << 24,
    progress: bool = False,
) -> TokenDataset:
    """The tokens of a corpus: from `folder`, if they are there already, else made.

    Without a `tokenizer` one of `vocab_size` is trained on the first `tokenizer_bytes` of the training documents. `folder` defaults to a
    place in the cache that is named by a hash of corpus, tokenizer and options. Several processes may call this at once: one works, the
    others wait. Raises ArgumentError for bad options or if `folder` holds something else.
    """
    source = source if isinstance(source, Corpus) else corpus(source)
    if not 0 < validation_fraction < 1:
        raise ArgumentError(f"prepare: validation_fraction must be between 0 and 1, got {validation_fraction}")
    if shard_tokens < 1 or tokenizer_bytes < 1:
        raise ArgumentError("prepare: shard_tokens and tokenizer_bytes must be positive")
    if tokenizer is None:
        recipe = {"trained": vocab_size, "bytes": tokenizer_bytes, "tokenizers": tokenizers.__version__}
    else:
        recipe = {"given": tokenizer.fingerprint}
    request = {
        "format": FORMAT,
        "corpus": source.fingerprint,
        "tokenizer": recipe,
        "validation_fraction": validation_fraction,
        "shard_tokens": shard_tokens,
    }
    key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(folder) if folder is not None else cache_folder("tokens", f"{source.name}-{key}")
    if _holds(folder, key):
        return TokenDataset.open(folder)
    _check_place(folder.parent)
    with locked(folder.parent / f".{folder.name}.lock", 3600, f"the tokens of {source.name}"):
        if not _holds(folder, key):
            _build(source, folder, key, tokenizer, vocab_size, validation_fraction, tokenizer_bytes, shard_tokens, progress)
    return TokenDataset.open(folder)


def _check_place(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        refused = None if os.access(folder, os.W_OK | os.X_OK) else "Permission denied"
    except OSError as error:
        refused = error.strerror
    if refused:
        around = "LABKERNELS_CACHE names another cache, or give a folder of your own"
        raise CacheError(f"prepare: tokens cannot be written to {folder}: {refused}; {around}")


def _holds(folder: Path, key: str) -> bool:
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    try:
        found = TokenDataset.open(folder)
    except ArgumentError:
        if (folder / "manifest.json").is_file():
            return False  # ours, and broken: made anew
        raise ArgumentError(f"prepare: {folder} exists and holds something else than prepared tokens") from None
    if found.manifest["key"] != key:
        raise ArgumentError(f"prepare: {folder} holds the tokens of another corpus, tokenizer or options; give another folder or delete it")
    return True


def _build(source, folder, key, tokenizer, vocab_size, validation_fraction, tokenizer_bytes, shard_tokens, progress):
    for left in folder.parent.glob(f".{folder.name}.*.unfinished"):  # of a process that was killed: we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".unfinished"))
    try:
        if tokenizer is None:
            texts = (text for split, text in split_documents(source.documents(), validation_fraction) if split == "train")
            tokenizer = Tokenizer.train(_up_to(texts, tokenizer_bytes), vocab_size, progress=progress)
        tokenizer.save(unfinished)
        dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
        writers = {split: _ShardWriter(unfinished, split, dtype, shard_tokens) for split in SPLITS}
        with tqdm(unit="B", unit_scale=True, desc=f"tokenising {source.name}", disable=None if progress else True) as bar:
            for batch in _batches(split_documents(source.documents(), validation_fraction)):
                encoded = tokenizer.encode_documents([text for _, text in batch])
                for (split, text), ids in zip(batch, encoded, strict=True):
                    size = len(text.encode())
                    writers[split].add(ids, size)
                    bar.update(size)
        splits = {split: writer.finish() for split, writer in writers.items()}
        if not splits["train"]["tokens"]:
            raise ArgumentError(f"prepare: the corpus {source.name!r} has no text to train on")
        paths = sorted(path for path in unfinished.iterdir() if path.suffix == ".npy" or path.name == "tokenizer.json")
        manifest = {
            "format": FORMAT,
            "key": key,
            "corpus": source.describe(),
            "validation_fraction": validation_fraction,
            "tokenizer": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
            "dtype": dtype.name,
            "splits": splits,
            "files": {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths},
        }
        write_file(unfinished / "manifest.json", json.dumps(manifest, indent=1))
        readable(unfinished)
        os.chmod(unfinished, 0o755)
        shutil.rmtree(folder, ignore_errors=True)  # empty, or ours and broken
        os.replace(unfinished, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def split_documents(documents: Iterable[Document], validation_fraction: float) -> Iterator[tuple[str, str]]:
    """(split, text) of each document. So that there always is something to validate on, the document of the smallest hash waits: at the
    end it is validation if nothing else was."""
    limit = int(validation_fraction * 2**64)
    waiting: tuple[int, str] | None = None
    trained = validated = False
    for document in documents:
        split, text = document.split, document.text
        if split is None:
            number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
            if number >= limit and not validated and (waiting is None or number < waiting[0]):
                waiting, (number, text) = (number, text), waiting or (0, "")
            split = "train" if number >= limit else "validation"
        if text:
            trained |= split == "train"
            validated |= split == "validation"
            yield split, text
    if waiting is not None:
        yield ("train" if validated or not trained else "validation"), waiting[1]


def _up_to(texts: Iterable[str], bytes: int) -> Iterator[str]:
    for text in texts:
        if bytes <= 0:
            return
        bytes -= len(text)
        yield text


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch, size = [], 0
    for one in chain(documents, [None]):
        if batch and (one is None or size >= _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        if one is not None:
            batch.append(one)
            size += len(one[1])


class _ShardWriter:
    """Collects documents and writes them in shards of `shard_tokens`, or a little more: a document is never cut."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype, shard_tokens: int):
        self._folder, self._split, self._dtype, self._limit = folder, split, dtype, shard_tokens
        self._documents: list[np.ndarray] = []
        self._tokens = 0
        self._entry = {"tokens": 0, "documents": 0, "bytes": 0, "shards": []}

    def add(self, ids: list[int], bytes: int) -> None:
        if not ids:
            return
        self._documents.append(np.asarray(ids, self._dtype))
        self._tokens += len(ids)
        self._entry["bytes"] += bytes
        if self._tokens >= self._limit:
            self._write()

    def finish(self) -> dict:
        if self._documents:
            self._write()
        return self._entry

    def _write(self) -> None:
        stem = f"{self._split}-{len(self._entry['shards']):05d}"
        shard = {"file": f"{stem}.tokens.npy", "starts": f"{stem}.starts.npy", "tokens": self._tokens, "documents": len(self._documents)}
        starts = np.cumsum([0, *map(len, self._documents)]).astype(np.uint64)
        for name, array in ((shard["file"], np.concatenate(self._documents)), (shard["starts"], starts)):
            with open(self._folder / name, "wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
        self._entry["tokens"] += self._tokens
        self._entry["documents"] += len(self._documents)
        self._entry["shards"].append(shard)
        self._documents, self._tokens = [], 0
