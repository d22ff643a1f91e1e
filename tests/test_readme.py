"""What README.md and CONTRIBUTING.md tell a reader to do works: commands exist, Python runs and prints what is shown, links lead somewhere."""
from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from typer.main import get_command

from docs.picture import IN_README, ladder
from labkernels.classroom.tables import is_stale
from labkernels.cli import app
from labkernels.lab.measured import recorded
from tests.llm.server.tiny_server import engine, served

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
CLI = get_command(app).commands
SERVED = "http://127.0.0.1:8000"  # where `labkernels serve` answers, unless told otherwise
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```(?:\n\1```text\n(.*?)^\1```)?", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[tuple[str, str]]:
    """The page's code blocks in a language, each with the output shown right below it, or ""."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [(dedent(code), dedent(shown)) for _, found, code, shown in BLOCK.findall(text) if found == language]


def commands(page: str) -> list[str]:
    """Every command of the page: the lines of its sh blocks, and `make ...` and `labkernels ...` in the running text."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [line for code, _ in blocks(page, "sh") for line in code.splitlines()]
    return lines + re.findall(r"`((?:make|labkernels) [^`]+)`", BLOCK.sub("", text))


def commands_of_labs() -> list[str]:
    """The lines of the labs' sh blocks, which stand in comments there."""
    found = []
    for lab in sorted((ROOT / "solutions").glob("*.py")):
        text = re.sub(r"^# ?", "", lab.read_text(encoding="utf-8"), flags=re.MULTILINE)
        found += [line for _, language, code, _ in BLOCK.findall(text) if language == "sh" for line in code.replace("\\\n", " ").splitlines()]
    return found


@pytest.mark.parametrize("command", [*(command for page in PAGES for command in commands(page)), *commands_of_labs()])
def test_commands_exist(command):
    words = shlex.split(command, comments=True)
    if words[:1] == ["torchrun"]:
        words = words[words.index("-m") + 1 :]
    match words:
        case ["make", *arguments]:
            targets = {word for word in arguments if "=" not in word}
            assert targets and targets <= TARGETS
        case ["labkernels", name, *options]:
            command = CLI[name]
            while hasattr(command, "commands"):  # `labkernels data prepare`
                command = command.commands[options.pop(0)]
            accepted = {option for parameter in command.params for option in parameter.opts}
            assert {option for option in options if option.startswith("-")} <= accepted
        case ["conda", "env", "create", "-f", file]:
            assert (ROOT / file).is_file()
        case ["conda", "activate", name]:
            assert f"name: {name}\n" in (ROOT / "environment.yml").read_text(encoding="utf-8")
        case _:
            pytest.fail(f"no test knows this command: {command}")


@pytest.mark.parametrize("code, shown", [block for page in PAGES for block in blocks(page, "python") if SERVED not in block[0]])
def test_python_runs_and_prints_what_is_shown(code, shown, tmp_path):
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120,
                           env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert ended.returncode == 0, ended.stderr
    if shown:
        assert doctest.OutputChecker().check_output(shown, ended.stdout, doctest.ELLIPSIS), ended.stdout


def test_the_client_talks_with_a_served_model(capsys):
    (code, _), = [block for block in blocks("README.md", "python") if SERVED in block[0]]
    with served(engine()) as server:
        exec(code.replace(SERVED, server.address), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)", text)
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_the_labs_of_the_table_are_the_labs_there_are():
    listed = re.findall(r"\(notebooks/(\w+)\.ipynb\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert listed == sorted(path.stem for path in (ROOT / "solutions").glob("[0-9][0-9]_*.py"))


def test_the_tables_and_the_picture_show_the_recorded_figures():
    assert not is_stale(ROOT / "README.md")
    assert IN_README.findall((ROOT / "README.md").read_text(encoding="utf-8")) == [ladder(recorded("attention")).alt]
