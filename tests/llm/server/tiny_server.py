"""A server of a tiny model on a free port of this machine, in a thread, and what its answers must be."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import uvicorn

from labkernels.llm.config import ModelConfig
from labkernels.llm.inference.engine import Engine
from labkernels.llm.model import Transformer
from labkernels.llm.server import create_app
from labkernels.llm.server.app import make_server
from labkernels.llm.data.tokenizer import Tokenizer

TEXTS = ["the cat sat on the mat and the dog sat on the log", "über Straßen – naïve café", "def f(x): return x + 1", "猫は座る。犬も座る。"]
NAME = "tiny"


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 4, vocab_size=330)


@functools.cache
def model() -> Transformer:
    torch.manual_seed(0)
    shape = ModelConfig(
        vocab_size=tokenizer().vocab_size, embed_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, ffn_dim=64, max_seq_len=256
    )
    return Transformer(shape)


def engine(**options) -> Engine:
    return Engine(model(), tokenizer(), **{"runner": "cached", "max_batch": 8, **options})


@dataclass
class Running:
    address: str
    engine: Engine
    service: object
    server: uvicorn.Server
    thread: threading.Thread

    def idle(self, limit_s: float = 10) -> bool:
        """Wait until nobody is served; whether that came."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            if self.service.loop.open == 0 and self.engine.idle:
                return True
            time.sleep(0.01)
        return False


@contextlib.contextmanager
def served(engine: Engine, grace_s: int = 5, **options) -> Iterator[Running]:
    app = create_app(engine, NAME, **options)
    server = make_server(app, "127.0.0.1", 0, grace_s=grace_s, log_level="warning")
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive() and time.monotonic() < end, "the server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(f"http://127.0.0.1:{port}", engine, app.state.service, server, thread)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not end"
