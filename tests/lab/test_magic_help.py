"""In a notebook Tab completes the magics' names and a kernel's attributes, and `?` says what each magic does."""

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell

LINE_MAGICS, CELL_MAGICS = ["profile", "sanitize", "bench", "ptx", "sass"], ["cuda", "check"]


@pytest.fixture
def shell():
    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "labkernels")
    yield shell
    shell.run_line_magic("reset", "-f")
    InteractiveShell.clear_instance()


def completions(shell, text: str) -> list[str]:
    with provisionalcompleter():
        return [completion.text for completion in shell.Completer.completions(text, len(text))]


@pytest.mark.parametrize("name", [f"%{name}" for name in LINE_MAGICS] + [f"%%{name}" for name in CELL_MAGICS])
def test_names_are_completed(shell, name):
    assert name in completions(shell, name[:-2])


@pytest.mark.parametrize("name", LINE_MAGICS + CELL_MAGICS)
def test_help_says_what_a_magic_does_and_how_it_is_written(shell, name):
    help_text = shell.object_inspect(f"%{name}" if name in LINE_MAGICS else f"%%{name}")["docstring"]
    assert f"%{name}" in help_text and len(help_text) > 60


def test_a_kernel_of_a_cell_is_completed(shell):
    shell.run_cell_magic("cuda", "", "__global__ void twice(float* x) { x[threadIdx.x] *= 2; }")
    assert any("resources" in text for text in completions(shell, "twice.re"))
