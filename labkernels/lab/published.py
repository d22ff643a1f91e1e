"""Figures that others have published: `published("attention_rtx3090")`. Columns are described in data/README.md."""

from __future__ import annotations

from pathlib import Path

import pandas

from labkernels.errors import LabKernelsError

_PACKAGE = Path(__file__).parents[1]
FOLDERS = (_PACKAGE.parent / "data" / "published", _PACKAGE / "data" / "published")  # in a checkout; in an installed package


def published(name: str) -> pandas.DataFrame:
    """All rows of data/published/<name>.csv; LabKernelsError, which names those there are, if it is not one of them."""
    files = {path.stem: path for folder in reversed(FOLDERS) for path in folder.glob("*.csv")}
    if name not in files:
        raise LabKernelsError(f"no published figures are called {name!r}; there are {', '.join(sorted(files)) or 'none'}")
    return pandas.read_csv(files[name])
