"""Documents come in one order, whole, once; downloads are what they should be or nothing."""
from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import os
import random
import threading
from pathlib import Path

import pytest

from labkernels.errors import ArgumentError, ToolchainError
from labkernels.llm.data import corpora, documents, downloads, public_corpora
from labkernels.llm.data.corpora import corpus
from labkernels.llm.data.downloads import DownloadError, PublicFile, fetch


def texts(source) -> list[str]:
    return [document.text for document in source.documents()]


def test_the_standard_library_is_real_text_in_one_order():
    source = corpus("stdlib", max_bytes=300_000)
    first = texts(source)
    assert first == texts(corpus("stdlib", max_bytes=300_000)) and source.fingerprint == corpus("stdlib", max_bytes=300_000).fingerprint
    assert 300_000 <= sum(len(text.encode()) for text in first) < 1_000_000
    assert sum("import" in text or "def " in text for text in first) > len(first) / 2
    more = texts(corpus("stdlib", max_bytes=600_000))
    assert more[: len(first)] == first and len(more) > len(first)
    assert not any("site-packages" in file.name for file in source.files)
    assert source.describe()["python"].startswith("3.")


def test_files_of_a_limit_are_not_those_that_come_first_by_name():
    names = [file.name for file in corpus("stdlib", max_bytes=300_000).files]
    assert names != sorted(names)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "sub" / "__pycache__").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "a.txt").write_text("\ufeffone é\r\n", encoding="utf-8")
    (tmp_path / "copy.txt").write_text("one é\r\n", encoding="utf-8")
    (tmp_path / "sub" / "old.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'Grüße'\n".encode("latin-1"))
    (tmp_path / "rows.jsonl").write_text('{"text": "row 1"}\n\n{"content": "row \\ud800 2"}\n')
    with gzip.open(tmp_path / "more.txt.gz", "wt") as file:
        file.write("zipped<|endoftext|>\nand more\n")
    for name, content in {"picture.png": b"\x89PNG\0\0", "not_utf8.txt": b"\xff\xfeabc", "empty.txt": b"", "space.txt": b" \n"}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".hidden" / "secret.txt").write_text("secret")
    (tmp_path / "sub" / "__pycache__" / "x.txt").write_text("cache")
    return tmp_path


def test_a_folder_gives_all_its_text_and_nothing_else(folder):
    want = {"one é\r\n", "# -*- coding: latin-1 -*-\nname = 'Grüße'\n", "row 1", "row \ufffd 2", "zipped", "and more\n"}
    got = texts(corpus(folder))
    assert set(got) == want and len(got) == len(want)  # the copy came once


def test_what_a_folder_is_depends_on_what_is_in_it(folder):
    before = corpus(folder).fingerprint
    (folder / "a.txt").write_text("another")
    assert corpus(folder).fingerprint != before
    assert corpus(folder, max_bytes=5).fingerprint != corpus(folder).fingerprint
    assert len(texts(corpus(folder, max_bytes=5))) < len(texts(corpus(folder)))


def test_a_collection_is_cut_at_its_separators_and_long_text_at_blank_lines(tmp_path):
    stories = [f"story {number}\n\n" + "words " * number for number in range(50)]
    (tmp_path / "stories.txt").write_text("\n<|endoftext|>\n".join(stories))
    assert texts(corpus(tmp_path / "stories.txt")) == [story.strip("\r\n") for story in stories]
    verses = "".join(f"SPEAKER {number}:\n{'some words, ' * 8}\n\n" for number in range(200))
    (tmp_path / "play.txt").write_text(verses)
    parts = list(documents.read_documents(tmp_path / "play.txt", largest=1000))
    assert "".join(parts) == verses and max(map(len, parts)) <= 1000
    assert all(part.startswith("SPEAKER") for part in parts) and len(parts) < 40


def test_a_book_or_a_few_come_in_enough_documents_for_both_splits(tmp_path):
    for part in range(3):
        (tmp_path / f"part {part}.txt").write_text("".join(f"Chapter {part}.{number}\n{'and so it went on, ' * 20}\n\n" for number in range(300)))
    for source in (tmp_path / "part 1.txt", tmp_path):
        whole = sum(len(path.read_text()) for path in ([source] if source.is_file() else source.iterdir()))
        found = texts(corpus(source))
        assert 100 < len(found) < 600 and sum(map(len, found)) == whole and all(text.startswith("Chapter") for text in found)
    (tmp_path / "program.py").write_text("x = 1\n\n" * 5000)
    assert len(texts(corpus(tmp_path / "program.py"))) == 1  # a program is one document


@pytest.mark.parametrize("block", [1, 7, 64, 10_000])
@pytest.mark.parametrize("largest", [3, 50, 10_000])
def test_cutting_does_not_depend_on_how_a_file_is_read(block, largest):
    text = "ab\n\ncd\nefgh" * 9 + "<|endoftext|>" + "x" * 120 + "<|endoftext|>\n\n<|endoftext|>end"
    whole = list(documents.cut([text], largest))
    got = list(documents.cut([text[at : at + block] for at in range(0, len(text), block)], largest))
    got, whole = ([piece for piece in pieces if piece] for pieces in (got, whole))
    assert got == whole and max(map(len, got)) <= largest
    assert "".join(got) == text.replace("<|endoftext|>\n\n", "").replace("<|endoftext|>", "")


def test_a_large_file_is_not_held_in_memory(tmp_path):
    import tracemalloc

    with open(tmp_path / "large.txt", "w") as file:
        for number in range(4000):
            file.write(f"{number} " + "some words " * 1000 + "<|endoftext|>")  # 44 MB
    tracemalloc.start()
    count = sum(1 for _ in corpus(tmp_path / "large.txt").documents())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 4000 and peak < 12e6


def test_mistakes_are_named(folder):
    with pytest.raises(ArgumentError, match="neither a folder, nor a file, nor one of stdlib, python"):
        corpus("wikipedia")
    with pytest.raises(ArgumentError, match="1 to 14 files"):
        corpus("fineweb-edu", files=15)
    with pytest.raises(ArgumentError, match="max_bytes must be positive"):
        corpus("stdlib", max_bytes=0)
    (folder / "rows.jsonl").write_text('{"text": "fine"}\n{"text": 3}\n')
    with pytest.raises(ArgumentError, match="line 2 of .*rows.jsonl"):
        texts(corpus(folder))
    with pytest.raises(ArgumentError, match="no file with text"):
        corpus(_empty(folder))


@pytest.mark.parametrize("how", ["no gzip", "truncated", "altered"])
def test_a_broken_archive_is_named(tmp_path, how):
    whole = gzip.compress(bytes(random.Random(0).choices(range(32, 127), k=50_000)))
    altered = whole[:2000] + bytes(byte ^ 0xFF for byte in whole[2000:2100]) + whole[2100:]
    (tmp_path / "a.txt.gz").write_bytes({"no gzip": b"just text", "truncated": whole[:-3000], "altered": altered}[how])
    with pytest.raises(ArgumentError, match="a.txt.gz is no whole gzip file"):
        texts(corpus(tmp_path))


def _empty(folder: Path) -> Path:
    (folder / "nothing").mkdir()
    return folder / "nothing"


def test_parquet_is_read_or_its_reader_named(tmp_path):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        (tmp_path / "a.parquet").write_bytes(b"PAR1")
        with pytest.raises(ToolchainError, match="pip install pyarrow"):
            texts(corpus(tmp_path))
        return
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", None, "two"], "id": [1, 2, 3]}), tmp_path / "a.parquet")
    assert texts(corpus(tmp_path)) == ["one", "two"]


def test_public_corpora_are_pinned():
    files = [public_corpora.SHAKESPEARE, *public_corpora.TINYSTORIES.values(), *public_corpora.FINEWEB_EDU]
    assert len({file.sha256 for file in files}) == len(files) == 17
    assert all(len(bytes.fromhex(file.sha256)) == 32 and file.url.startswith("https://") for file in files)
    assert sum(file.bytes for file in public_corpora.FINEWEB_EDU) == 28_518_193_415
    assert [file.split for file in corpus("tinystories").files] == ["train", "validation"]


CONTENT = bytes(range(256)) * 3000


class Home(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT with ranges; its class attributes say how badly."""

    breaks_after: int | None = None  # bytes of an answer, once
    ranges = True
    asked: list[str | None] = []

    def do_GET(self):
        Home.asked.append(self.headers.get("Range"))
        if "missing" in self.path:
            return self.send_error(404)
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if Home.ranges and "Range" in self.headers else 0
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if Home.breaks_after is not None:
            body, Home.breaks_after = body[: Home.breaks_after], None
        self.wfile.write(body)
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def home(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Home)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    Home.breaks_after, Home.ranges, Home.asked = None, True, []
    monkeypatch.setattr(downloads.time, "sleep", lambda _: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(timeout=10)


def public(home: str, name: str = "data.bin", **other) -> PublicFile:
    return PublicFile(f"{home}/{name}", other.get("bytes", len(CONTENT)), other.get("sha256", hashlib.sha256(CONTENT).hexdigest()))


def test_a_download_arrives_and_is_not_repeated(home, tmp_path):
    path = fetch(public(home), tmp_path, progress=False)
    assert path.read_bytes() == CONTENT and [one.name for one in tmp_path.iterdir() if not one.name.endswith(".lock")] == ["data.bin"]
    assert fetch(public(home), tmp_path, progress=False) == path and len(Home.asked) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_taken_up_where_it_broke(home, tmp_path, ranges):
    Home.breaks_after, Home.ranges = 100_000, ranges
    assert fetch(public(home), tmp_path, progress=False).read_bytes() == CONTENT
    assert Home.asked[0] is None and Home.asked[1].startswith("bytes=")


def test_what_another_process_began_is_taken_up(home, tmp_path):
    (tmp_path / ".data.bin.unfinished").write_bytes(CONTENT[:5000])
    assert fetch(public(home), tmp_path, progress=False).read_bytes() == CONTENT
    assert Home.asked == ["bytes=5000-"]


def test_a_file_with_another_checksum_is_refused_and_not_kept(home, tmp_path):
    with pytest.raises(DownloadError, match="altered or replaced"):
        fetch(public(home, sha256="0" * 64), tmp_path, progress=False)
    assert [one for one in tmp_path.iterdir() if not one.name.endswith(".lock")] == []


def test_a_file_that_is_larger_than_said_is_refused(home, tmp_path):
    with pytest.raises(DownloadError, match="more than"):
        fetch(public(home, bytes=1000), tmp_path, progress=False)


def test_a_file_that_is_not_there_is_named(home, tmp_path):
    with pytest.raises(DownloadError, match=r"missing\.bin.*404.*|.*Not Found"):
        fetch(public(home, "missing.bin"), tmp_path, progress=False)
    assert len(Home.asked) == 1


def test_without_a_network_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("LABKERNELS_CACHE", str(tmp_path))
    unreachable = PublicFile("http://127.0.0.1:9/input.txt", 1000, "ab" * 32)
    monkeypatch.setattr(public_corpora, "SHAKESPEARE", unreachable)
    with pytest.raises(DownloadError, match='Without a network use corpus\\("stdlib"\\).*or put the file at .*input.txt'):
        texts(corpora.corpus("shakespeare"))


def test_no_room_is_said_before_anything_is_fetched(home, tmp_path):
    with pytest.raises(DownloadError, match=r"needs .* GB, and .* free"):
        fetch(public(home, bytes=1 << 60), tmp_path, progress=False)
    assert Home.asked == []


def test_a_file_put_there_by_hand_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKERNELS_CACHE", str(tmp_path))
    content = "ROMEO:\nBut soft\n\n".encode() * 900
    file = PublicFile("http://127.0.0.1:9/input.txt", len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(public_corpora, "SHAKESPEARE", file)
    folder = tmp_path / "downloads" / file.sha256[:16]
    os.makedirs(folder)
    (folder / "input.txt").write_bytes(content)
    assert len(texts(corpora.corpus("shakespeare"))) > 1
    assert json.dumps(corpora.corpus("shakespeare").describe())
