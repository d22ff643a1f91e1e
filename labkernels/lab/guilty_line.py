"""The line of the reader's own code that an exception came through."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

_NOT_THEIRS = tuple(str(Path(folder)) for folder in (Path(__file__).parents[1], sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")))


def guilty_line(error: BaseException) -> str | None:
    """`my_softmax, line 3: y = x / total`: the innermost frame outside this package and the installed ones; None if there is none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_NOT_THEIRS)]
    if not frames:
        return None
    return f"{frames[-1].name}, line {frames[-1].lineno}" + (f": {frames[-1].line}" if frames[-1].line else "")
