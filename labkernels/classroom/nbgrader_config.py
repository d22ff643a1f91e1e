"""What an nbgrader course of these labs needs: in its nbgrader_config.py

    c = get_config()
    from labkernels.classroom.nbgrader_config import configure
    configure(c)
"""
from __future__ import annotations

from nbgrader.converters import GenerateAssignment
from nbgrader.preprocessors import ClearSolutions

from labkernels.classroom.execute import CELL_TIMEOUT_S
from labkernels.classroom.stubs import ClearLabSolutions


def configure(config) -> None:
    """Cut answers with C++ stubs, and give each cell the time that an emulated kernel may take."""
    config.GenerateAssignment.preprocessors = [
        ClearLabSolutions if step is ClearSolutions else step for step in GenerateAssignment.preprocessors.default()
    ]
    config.Execute.timeout = CELL_TIMEOUT_S
