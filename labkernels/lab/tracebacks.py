"""Short tracebacks: where in the notebook's own cells an error of the package came up, then its text, and none of our frames."""
from __future__ import annotations

import linecache
import sys
import traceback

_RED, _PLAIN = "\x1b[31m", "\x1b[0m"


def render_traceback(error: BaseException, shell) -> list[str]:
    """The lines that IPython shows for `error`: for it and for what caused it the cell, line and text, then its message."""
    shown: list[str] = []
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    for link in reversed(chain):
        shown += cell_lines(link, shell)
    message = str(error).splitlines() or [""]
    return [*shown, "", f"{_RED}{type(error).__name__}{_PLAIN}: {message[0]}", *message[1:]]


def running_cell(shell) -> int:
    """The number n of the cell In[n] that is running now; `shell.execution_count` is that of the next one in some IPythons."""
    frame = sys._getframe()
    while frame is not None:
        if (cell := shell.compile.format_code_name(frame.f_code.co_filename)) is not None:
            return int(cell[1].removeprefix("In[").removesuffix("]"))
        frame = frame.f_back
    return shell.execution_count


def cell_lines(error: BaseException, shell) -> list[str]:
    """For each frame of `error`, here or in the process where it was raised, that lies in a cell: the cell, the line's number and its text."""
    lines = []
    for frame in [*traceback.extract_tb(error.__traceback__), *getattr(error, "remote_frames", ())]:
        cell = shell.compile.format_code_name(frame.filename)
        text = linecache.getline(frame.filename, frame.lineno).strip()
        if cell is not None and "get_ipython().run_cell_magic(" not in text:
            lines.append(f"{cell[1]}, line {frame.lineno}: {text}")
    return list(dict.fromkeys(lines))
