"""`labkernels data` makes tokens of text, shows them, and says what is wrong in one line."""
from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from labkernels.cli import app


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKERNELS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "texts").mkdir()
    for number in range(30):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"text number {number}, and some words of it")
    return tmp_path / "texts"


def run(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    return result.exit_code, result.output


def test_text_becomes_tokens_that_can_be_shown(texts, tmp_path):
    code, said = run("prepare", texts, "--vocab-size", 270, "--folder", tmp_path / "tokens", "--validation", 0.2)
    assert code == 0 and f"{tmp_path / 'tokens'}\ncorpus texts, vocabulary 270, uint16\ntrain " in said and "bytes a token" in said
    code, again = run("show", tmp_path / "tokens", "--verify")
    assert code == 0 and "all checksums are right" in again and said.splitlines()[-1] in again
    found, one = (json.loads(run("show", tmp_path / "tokens", *more, "--json")[1]) for more in ([], ["--document", 0]))
    assert found["splits"]["train"]["documents"] + found["splits"]["validation"]["documents"] == 30 and one["text"].startswith("text number ")
    code, document = run("show", tmp_path / "tokens", "--split", "validation", "--document", 0)
    assert code == 0 and document.startswith("text number ") and document.endswith("some words of it\n")


def test_mistakes_end_with_a_message(texts, tmp_path):
    for arguments, says in [
        (("prepare", "wikipedia"), "neither a folder, nor a file, nor one of stdlib"),
        (("prepare", texts, "--vocab-size", 10), "vocab_size is 10"),
        (("prepare", texts, "--tokenizer", tmp_path), "no tokenizer.json"),
        (("show", tmp_path), "holds no prepared tokens"),
        (("prepare", texts, "--vocab-size", 270, "--folder", texts / "0.txt" / "tokens"), "tokens cannot be written to"),
    ]:
        code, said = run(*arguments)
        assert code == 1 and says in said and "Traceback" not in said
    run("prepare", texts, "--vocab-size", 270, "--folder", tmp_path / "tokens")
    assert "it has the documents" not in run("show", tmp_path / "tokens", "--document", 0)[1]
    assert "--split is 'test'; it must be train or validation" in run("show", tmp_path / "tokens", "--split", "test", "--document", 0)[1]
    assert "has the documents 0 to" in run("show", tmp_path / "tokens", "--document", 99)[1]
    starts = next((tmp_path / "tokens").glob("train-*.tokens.npy"))
    os.truncate(starts, 10)
    assert run("show", tmp_path / "tokens")[0] == 1


def test_json_alone_comes_on_stdout_and_the_folder_is_as_an_ordinary_one(texts, tmp_path):
    command = [sys.executable, "-m", "labkernels", "data", "prepare", str(texts), "--vocab-size", "270", "--folder", str(tmp_path / "tokens"), "--json"]
    shown = subprocess.run(command, stdout=subprocess.PIPE, timeout=120, check=True).stdout
    assert shown.startswith(b"{") and json.loads(shown)["folder"] == str(tmp_path / "tokens")
    (tmp_path / "ordinary").mkdir()
    assert (tmp_path / "tokens").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
