"""Running a lab from top to bottom in a fresh kernel."""
from __future__ import annotations

import os
from pathlib import Path

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from labkernels.classroom.outputs import tidy
from labkernels.classroom.source import KERNELSPEC, LANGUAGE_INFO, BookError

PACKAGE = Path(__file__).resolve().parents[1]
CELL_TIMEOUT_S = 300


def execute(lab: str, notebook: NotebookNode, folder: Path) -> None:
    """Run every cell, in place, with `folder` as the current one, and without a GPU even where there is one.

    Raises BookError naming the lab, the cell and the exception of the first cell that fails.
    """
    running = {}
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name=notebook.metadata.kernelspec.name,
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--log-level=ERROR"],
        record_timing=False,
        coalesce_streams=True,
        on_cell_execute=lambda cell, cell_index: running.update(number=cell_index + 1, cell=cell),
    )
    try:
        client.execute(env=cpu_environment())
    except CellExecutionError as error:
        raise BookError(f"{where(lab, **running)}: {error.ename}: {error.evalue}") from error
    except (CellTimeoutError, DeadKernelError) as error:
        raise BookError(f"{where(lab, **running)}: {type(error).__name__}: {str(error).strip()}") from error


def execute_and_tidy(lab: str, notebook: NotebookNode, folder: Path) -> None:
    """`execute`, and then make the outputs the same on every machine; raises BookError also for outputs that a lab must not have."""
    execute(lab, notebook, folder)
    notebook.metadata.update(kernelspec=dict(KERNELSPEC), language_info=dict(LANGUAGE_INFO))
    notebook.metadata.pop("widgets", None)
    for number, cell in enumerate(notebook.cells, 1):
        try:
            tidy(cell, folder.parent)
        except BookError as error:
            raise BookError(f"{where(lab, number, cell)}: {error}") from None


def cpu_environment() -> dict[str, str]:
    """This process's environment for a kernel that imports this same package, sees no GPU, and has Python's hashes fixed."""
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "PYTHONHASHSEED": "0"}


def where(lab: str, number: int, cell: NotebookNode) -> str:
    """A cell as messages name it: its lab, its position and its first line."""
    name = cell.metadata.get("nbgrader", {}).get("grade_id")
    first_line = cell.source.strip().splitlines()[0]
    return f"{lab}, cell {number}" + (f" ({name})" if name else f" ({first_line[:60]})")
