"""Which variant multiplies: decided by what was measured (data in `selection_table.csv`), not by what the ladder's order would suggest."""

from __future__ import annotations


def slower(name: str, x, weight) -> str | None:
    return None
