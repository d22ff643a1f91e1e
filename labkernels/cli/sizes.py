"""Bytes as people read them."""


def readable(count: float) -> str:
    """`13.5 GB`, `97 MB`, `2.1 kB`; powers of ten, as memory estimates have them."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} bytes"
