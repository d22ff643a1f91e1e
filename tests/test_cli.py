"""The command line: what it makes, and that a mistake ends in a message, not in a traceback."""
import os
import subprocess
import sys
from importlib import import_module

import pytest
import typer
from typer.testing import CliRunner

from labkernels.cli import app
from labkernels.cli.complaints import complaints

LAB = '''\
# %% [markdown]
# # A lab

# %% tags=["parameters"] again={"a": 2}
a = 1
'''


@pytest.fixture
def root(tmp_path):
    (tmp_path / "solutions").mkdir()
    (tmp_path / "solutions" / "01_small.py").write_text(LAB)
    (tmp_path / "README.md").write_text("A book without tables.\n")
    return tmp_path


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_it_says_its_version():
    code, shown = run("--version")
    assert code == 0 and shown.startswith("labkernels")


def test_book_makes_checks_and_skips(root):
    code, shown = run("book", "--check", "--root", root)
    assert code == 1 and "solutions/01_small.ipynb is missing" in shown
    code, shown = run("book", "--root", root)
    assert code == 0 and "01_small: made in" in shown
    assert run("book", "--root", root) == (0, "01_small: unchanged\n")
    assert run("book", "--check", "--root", root) == (0, "1 labs agree with their sources\n")
    (root / "solutions" / "01_small.py").write_text(LAB.replace("a = 1", "a = 3"))
    code, shown = run("book", "--check", "--root", root)
    assert code == 1 and "cell 2: the source differs" in shown


def test_course_is_made_of_made_labs(root, tmp_path):
    code, shown = run("course", root / "course", "--root", root)
    assert code == 1 and "`labkernels book` makes it" in shown
    run("book", "--root", root)
    code, shown = run("course", root / "course", "--root", root)
    assert code == 0 and "nbgrader generate_assignment 01_small" in shown
    assert (root / "course" / "source" / "01_small" / "01_small.ipynb").is_file()


def test_a_stale_table_in_the_readme_is_found_and_a_figure_that_is_not_there_named(root):
    run("book", "--root", root)
    (root / "README.md").write_text("<!-- measured: nothing across=size -->\n<!-- /measured -->\n")
    code, shown = run("book", "--check", "--root", root)
    assert code == 1 and "nothing.csv is missing" in shown


@pytest.mark.parametrize("arguments", [["book", "07"], ["book"], ["course", "there"]])
def test_a_mistake_ends_in_a_message(root, tmp_path, arguments):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code, shown = run(*arguments, "--root", root if "07" in arguments else elsewhere)
    assert code == 1 and shown.startswith("no lab") and "Traceback" not in shown


def test_info_says_where_kernels_run():
    result = subprocess.run([sys.executable, "-m", "labkernels", "info"], capture_output=True, text=True, check=True)
    values = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    assert "GPU" in values["kernels run"] and values["PyTorch"].strip()
    assert {"C++ compiler", "NVRTC", "compiled code"} <= set(values)


def test_a_terminal_that_lacks_a_character_shows_the_others():
    program = "from labkernels.cli.complaints import complaints\nwith complaints():\n    print('a \\ufffd b')"
    environment = os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    shown = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, timeout=60, check=True).stdout
    assert shown == b"a ? b\n"


def test_a_package_that_is_not_installed_is_named(capsys):
    with pytest.raises(typer.Exit), complaints():
        import_module("package_that_is_not_there.part")
    assert capsys.readouterr().err == "package_that_is_not_there is not installed: pip install package_that_is_not_there\n"
    with pytest.raises(ModuleNotFoundError), complaints():  # a mistake of ours
        import_module("labkernels.not_there")
