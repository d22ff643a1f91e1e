"""The map of the package, labkernels/README.md, has every folder once, leads to files that are there, and says what to read first of each ladder."""

import re
from pathlib import Path

import labkernels
from labkernels.operation import ops

PACKAGE = Path(labkernels.__file__).parent
TEXT = (PACKAGE / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", TEXT, re.MULTILINE)  # folder, what, links


def test_the_map_has_every_folder_once_and_no_other():
    folders = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    assert sorted(folder for folder, _, _ in ROWS) == sorted(folders)


def test_every_link_leads_to_a_file_or_folder():
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert len(links) > 30 and [link for link in links if not (PACKAGE / link).exists()] == []


def test_the_first_table_has_the_ladders_and_of_each_a_kernel_of_its_own_folder():
    ladders = re.findall(r"^\| `(\w+)` ", TEXT.split("## Ladders")[1].split("## ")[0], re.MULTILINE)
    assert sorted(ladders) == sorted({variant.source.parent.name for op in ops.values() for variant in op.variants.values()})
    links = {folder: re.findall(r"\]\(([^)]+)\)", cell) for folder, _, cell in ROWS}
    assert all(re.fullmatch(rf"{folder}/\w+\.cu", link) for folder in ladders for link in links[folder])


def test_it_is_one_page():
    assert len(TEXT.splitlines()) < 80
