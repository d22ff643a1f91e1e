"""A progress bar for work that takes longer than a second, where somebody is watching."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from typing import TypeVar

Item = TypeVar("Item")
PATIENCE_S = 1.0


def progress(items: Collection[Item], what: str) -> Iterator[Item]:
    """The items one by one. After a second a bar appears under the cell, and goes when all are done.

    Only in a notebook that somebody sits at: in one that is executed to be kept or graded, a bar would be output that changes from run to run.
    """
    if not watched():
        return iter(items)
    from tqdm.auto import tqdm

    return iter(tqdm(items, desc=what, delay=PATIENCE_S, leave=False))


def watched() -> bool:
    """Does a person run this cell? JupyterLab's cells may ask for input; those that nbclient, papermill and nbgrader run may not."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return bool(getattr(getattr(shell, "kernel", None), "_allow_stdin", False))
