"""An engine behind HTTP, as OpenAI's interface has it: /v1/completions, /v1/chat/completions, /v1/models, /metrics, /health.

    labkernels serve FOLDER                                       on http://127.0.0.1:8000/v1
    create_app(Engine.from_pretrained(folder), "my-model")        the application, for a server of your own

    app.py      the routes: from a request's JSON to its answer's
    api.py      what a request may say, and the answers, as OpenAI spells them
    loop.py     the one thread that steps the engine, and who hears what comes out
    limits.py   how much anybody may ask for: bytes, tokens, choices, places in the queue; the key
    metrics.py  what Prometheus sees
"""

from importlib import import_module

_HOME = {"create_app": "app", "run": "app", "Limits": "limits", "EngineLoop": "loop"}
__all__ = [*_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'labkernels.llm.server' has no attribute {name!r}")
    return getattr(import_module(f"labkernels.llm.server.{_HOME[name]}"), name)
