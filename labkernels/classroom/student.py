"""The student edition: the lab with its answers cut and its outputs cleared, as nbgrader would release it."""
from __future__ import annotations

import copy

from nbformat import NotebookNode
from nbgrader.preprocessors import CheckCellMetadata, ClearOutput, ComputeChecksums, LockCells

from labkernels.classroom.stubs import ClearLabSolutions

# nbgrader's order in generate_assignment, without the steps that need its database or that no lab uses.
PREPROCESSORS = [LockCells, ClearLabSolutions, ClearOutput, CheckCellMetadata, ComputeChecksums]


def student_edition(worked: NotebookNode) -> NotebookNode:
    """The student's notebook made from the worked one, which is left as it is.

    Tests cells are locked and carry nbgrader's checksum, so that `nbgrader validate` tells a student who changed them.
    """
    notebook = copy.deepcopy(worked)
    notebook.metadata["labkernels"] = {"source": worked.metadata["labkernels"]["source"]}
    resources: dict = {}
    for preprocessor in PREPROCESSORS:
        notebook, resources = preprocessor().preprocess(notebook, resources)
    return notebook
