"""The map of labkernels/llm, its README, has every file once, and names none that is not there."""

import re
from pathlib import Path

import labkernels.llm

FOLDER = Path(labkernels.llm.__file__).parent


def test_the_map_has_every_file_and_no_other():
    linked = re.findall(r"\]\(([^)]+)\)", (FOLDER / "README.md").read_text())
    files = (path for path in FOLDER.rglob("*") if path.suffix in (".py", ".cu") and path.name != "__init__.py")
    assert sorted(linked) == sorted(path.relative_to(FOLDER).as_posix() for path in files)
    assert "README.md" in labkernels.llm.__doc__
