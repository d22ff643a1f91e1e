"""Tokens on disk are the documents, each in one split, found again without work, and never taken for another corpus's."""
from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import tokenizers

from labkernels.errors import ArgumentError
from labkernels.llm.data import shards
from labkernels.llm.data.corpora import Document
from labkernels.llm.data.shards import TokenDataset, prepare, split_documents
from labkernels.llm.data.tokenizer import Tokenizer


def write(folder, count: int, start: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(start, start + count):
        (folder / f"{number}.txt").write_text(f"text number {number}: " + "some words of it. " * (number % 7 + 1))


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKERNELS_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "texts", 100)
    return tmp_path / "texts"


def test_every_document_is_there_once_and_whole(texts):
    data = prepare(texts, 275, shard_tokens=500, validation_fraction=0.1)
    found = [data.tokenizer.decode(data[split].document(index)[:-1]) for split in data.splits for index in range(data[split].documents)]
    assert sorted(found) == sorted(path.read_text() for path in texts.iterdir())
    assert data["train"].documents + data["validation"].documents == 100 and 2 <= data["validation"].documents <= 25
    train = data["train"]
    assert len(train.entry["shards"]) > 3 and train.tokens == train.lengths.sum() == train.starts[-1]
    assert train.bytes + data["validation"].bytes == sum(path.stat().st_size for path in texts.iterdir())
    assert all(train.document(index)[-1] == data.tokenizer.eos_id for index in range(train.documents))
    assert data.manifest["dtype"] == "uint16" and data.manifest["eos_id"] == 0 and data.vocab_size == data.tokenizer.vocab_size == 275
    data.verify()


def test_reading_across_shards_is_reading_one_array(texts):
    train = prepare(texts, 300, shard_tokens=200)["train"]
    whole = np.concatenate([np.load(train.folder / shard["file"]) for shard in train.entry["shards"]])
    assert len(whole) == train.tokens and len(train.entry["shards"]) > 5
    draw = np.random.default_rng(0)
    for start, stop in [(0, train.tokens), (199, 201), *np.sort(draw.integers(0, train.tokens, (100, 2)), axis=1)]:
        if start < stop:
            assert np.array_equal(train.read(int(start), int(stop)), whole[start:stop])


def test_the_second_time_nothing_is_done(texts, monkeypatch):
    first = prepare(texts, 300)
    monkeypatch.setattr(shards, "_build", lambda *_: pytest.fail("built again"))
    assert prepare(texts, 300).folder == first.folder


@pytest.mark.parametrize("change", ["text", "vocab_size", "fraction", "tokenizer"])
def test_another_request_has_a_folder_of_its_own(texts, change):
    first = prepare(texts, 275)
    if change == "text":
        (texts / "0.txt").write_text("changed")
    other = prepare(
        texts,
        265 if change == "vocab_size" else 275,
        validation_fraction=0.5 if change == "fraction" else 0.05,
        tokenizer=Tokenizer.train(["ab" * 9], 270) if change == "tokenizer" else None,
    )
    assert other.folder != first.folder and other.fingerprint != first.fingerprint


def test_more_text_moves_no_document_across_and_copies_stay_together():
    documents = [Document(f"text {number}") for number in range(500)]
    before = {text: split for split, text in split_documents(documents, 0.1)}
    after = {text: split for split, text in split_documents([Document(f"text {number}") for number in range(1000)], 0.1)}
    assert len(before) == 500 and all(after[text] == split for text, split in before.items())
    assert 25 < sum(split == "validation" for split in before.values()) < 85
    doubled = list(split_documents(documents + documents, 0.1))
    assert len(doubled) == 1000 and len(set(doubled)) == 500


@pytest.mark.parametrize("count", [2, 3, 10])
def test_there_is_always_something_to_validate_on(count):
    splits = [split for split, _ in split_documents([Document(f"text {number}") for number in range(count)], 1e-6)]
    assert splits.count("validation") == 1 and splits.count("train") == count - 1


def test_one_document_is_trained_on_and_said_splits_are_kept():
    assert list(split_documents([Document("alone")], 1e-6)) == [("train", "alone")]
    said = [Document("a", "train"), Document("b", "validation"), Document("c", "train")]
    assert list(split_documents(said, 0.99)) == [("train", "a"), ("validation", "b"), ("train", "c")]


def test_a_large_vocabulary_takes_32_bits(texts):
    vocabulary = {f"w{number}": number for number in range(70_000)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w69999"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    data = prepare(texts, tokenizer=Tokenizer(backend))
    assert data.manifest["dtype"] == "uint32" and data["train"].document(0).dtype == np.uint32 and data["train"].document(0).max() == 69_999


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_shard_is_named_and_made_anew(texts, damage):
    data = prepare(texts, 300)
    path = data.folder / data["train"].entry["shards"][0]["file"]
    before = path.read_bytes()
    os.truncate(path, 100) if damage == "truncated" else path.unlink()
    with pytest.raises(ArgumentError, match=rf"{path.name} (has 100 bytes|is missing)"):
        TokenDataset.open(data.folder)
    assert prepare(texts, 300).folder == data.folder and path.read_bytes() == before


def test_an_altered_shard_is_found_by_its_checksum(texts):
    data = prepare(texts, 300)
    path = data.folder / data["train"].entry["shards"][0]["file"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArgumentError, match="is not what was written"):
        TokenDataset.open(data.folder).verify()


def test_a_folder_is_not_overwritten_with_something_else(texts, tmp_path):
    prepare(texts, 300, folder=tmp_path / "tokens")
    with pytest.raises(ArgumentError, match="another corpus, tokenizer or options"):
        prepare(texts, 320, folder=tmp_path / "tokens")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArgumentError, match="something else"):
        prepare(texts, 300, folder=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_what_fails_leaves_nothing_behind(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(Tokenizer, "encode_documents", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(texts, 300)
    assert not [path for path in (tmp_path / "cache" / "tokens").iterdir() if not path.name.endswith(".lock")]


def test_processes_that_ask_at_once_share_the_work(texts, monkeypatch):
    built = []
    build = shards._build
    monkeypatch.setattr(shards, "_build", lambda *given: (built.append(1), build(*given)))
    found = []
    threads = [threading.Thread(target=lambda: found.append(prepare(texts, 300).fingerprint)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(built) == 1 and len(found) == 4 and len(set(found)) == 1


def test_the_validation_text_is_not_what_the_tokenizer_learns_from(texts):
    candidates = ["qqqqzzzz " * 50 + str(number) for number in range(100)]
    split = {text: split for split, text in split_documents([Document(text) for text in candidates], 0.5)}
    for number, (kind, learnt) in enumerate([("validation", None), ("train", int)]):
        path = texts / f"z{number}.txt"
        path.write_text(next(text for text in candidates if split[text] == kind))
        data = prepare(texts, 320, validation_fraction=0.5)
        assert ("qqqqzzzz" in data.tokenizer.decode(data[kind].read(0, data[kind].tokens))) and path.exists()
        assert isinstance(data.tokenizer.token_to_id("qqqqzzzz"), learnt or type(None))


def test_mistakes_are_named(texts, tmp_path):
    with pytest.raises(ArgumentError, match="validation_fraction"):
        prepare(texts, validation_fraction=0)
    with pytest.raises(ArgumentError, match="no split 'test', only train, validation"):
        prepare(texts, 300)["test"]
    with pytest.raises(ArgumentError, match="holds no prepared tokens"):
        TokenDataset.open(tmp_path)
