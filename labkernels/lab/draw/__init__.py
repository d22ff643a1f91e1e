"""The book's pictures: `lk.draw.attention_products()`. One file a topic; a picture is loaded when it is first drawn."""

from importlib import import_module

_HOME = {  # picture: the file it lives in
    "attention_products": "attention",
    "attention_weights": "attention",
    "attention_masks": "attention",
    "attention_memory": "attention",
    "grouped_heads": "attention",
    "score_threads": "attention",
    "score_traffic": "attention",
    "accumulator": "flash",
    "attention_tiles": "flash",
    "tile_barriers": "flash",
    "causal_tiles": "flash",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"lk.draw has no picture called {name!r}; there are {', '.join(sorted(_HOME))}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return sorted({*globals(), *_HOME})
