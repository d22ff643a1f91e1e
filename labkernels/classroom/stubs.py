"""What a student finds in place of an answer.

nbgrader's own `ClearSolutions` writes Python into every cell. This one writes C++ into C++, and friendlier Python:

- C++: a comment and an `#error`, so that the blank cell says what is missing when it is compiled, and nothing runs;
- Python below `name = None` at the same indentation: a comment only, since the tests cell will say what is missing;
- other Python: a comment and a NotImplementedError.
"""
from __future__ import annotations

import re

from nbgrader.preprocessors import ClearSolutions

from labkernels.classroom.exercises import BEGIN, language

TURN = "Your turn: replace these two lines with your code."
CPP_STUB = f"// YOUR CODE HERE\n#error {TURN}"
PYTHON_STUB = f'# YOUR CODE HERE\nraise NotImplementedError("{TURN}")'
PYTHON_NAMED_STUB = "# YOUR CODE HERE"


class ClearLabSolutions(ClearSolutions):
    """nbgrader's ClearSolutions with a stub for each language a lab's cells are written in."""

    def _replace_solution_region(self, cell, kernel_language: str) -> bool:
        if cell.cell_type == "code":
            self.code_stub = {**self.code_stub, kernel_language: stub_for(cell.source)}
        return super()._replace_solution_region(cell, kernel_language)

    def preprocess_cell(self, cell, resources, cell_index):
        magic = re.match(r"\s*%%[^\n]*\n", cell.source) if cell.cell_type == "code" else None
        cell, resources = super().preprocess_cell(cell, resources, cell_index)
        if magic and not cell.source.startswith(magic.group()):    # an answer without markers is the whole cell, but not its magic
            cell.source = magic.group() + cell.source
        return cell, resources


def stub_for(source: str) -> str:
    """The stub for the answers in a code cell."""
    if language(source) == "c++":
        return CPP_STUB
    before = source[: source.find(BEGIN)] if BEGIN in source else ""
    indent = re.search(r"([ \t]*)[^\n]*\Z", before).group(1)
    named = re.search(rf"^{indent}\w[\w ,=]*=[ ]*None[ ]*(#.*)?$", before, re.MULTILINE)
    return PYTHON_NAMED_STUB if named else PYTHON_STUB
