"""What Prometheus sees: how many ask, how long they wait, how fast they are served, how full the cache is.

Notable: each application has a registry of its own, so that two in one process do not count each other's; what the engine counts itself is
read when somebody looks, from the state after the last pass, and no lock of the engine is taken.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labkernels.llm.inference.requests import Request
from labkernels.llm.server.loop import EngineLoop

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKEN_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Metrics:
    """The counters of one application; `text()` is what /metrics answers."""

    def __init__(self, loop: EngineLoop):
        self.registry = CollectorRegistry()
        self.requests = Counter("labkernels_requests", "HTTP requests by path and status", ["path", "status"], registry=self.registry)
        self.answers = Counter(
            "labkernels_answers", "Answers by why they ended: stop, length, cancelled, error", ["reason"], registry=self.registry
        )
        self.first_token = Histogram(
            "labkernels_first_token_seconds", "From a request to its first token", buckets=SECONDS, registry=self.registry
        )
        self.per_token = Histogram(
            "labkernels_token_seconds", "Of each token after the first", buckets=TOKEN_SECONDS, registry=self.registry
        )
        self.whole = Histogram(
            "labkernels_answer_seconds", "From a request to the end of its answer", buckets=SECONDS, registry=self.registry
        )
        self.registry.register(_Engine(loop))

    def finished(self, request: Request) -> None:
        """An answer came to its end, whichever."""
        self.answers.labels(request.finish_reason or "cancelled").inc()
        if request.first_token_at is not None:
            self.first_token.observe(request.first_token_at - request.arrived)
        if request.finished_at is None or request.first_token_at is None:
            return
        self.whole.observe(request.finished_at - request.arrived)
        if len(request.tokens) > 1:
            self.per_token.observe((request.finished_at - request.first_token_at) / (len(request.tokens) - 1))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Counted:
    """ASGI: counts requests by route and status. What came to no route is "other", so that nobody can fill the registry with paths."""

    def __init__(self, app: ASGIApp, counter: Counter):
        self.app, self.counter = app, counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.counter.labels(getattr(scope.get("route"), "path", "other"), message["status"]).inc()
            await send(message)

        await self.app(scope, receive, watched if scope["type"] == "http" else send)


class _Engine:
    """The engine's own numbers, read at each look."""

    def __init__(self, loop: EngineLoop):
        self._loop = loop

    def collect(self) -> Iterator[Metric]:
        s = self._loop.stats
        yield GaugeMetricFamily("labkernels_requests_waiting", "Requests that wait for their turn", s.waiting)
        yield GaugeMetricFamily("labkernels_requests_running", "Requests that are being answered", s.running)
        yield GaugeMetricFamily("labkernels_cache_pages", "Pages of the cache of keys and values", s.num_pages)
        yield GaugeMetricFamily("labkernels_cache_pages_free", "Pages that no request holds", s.free_pages)
        yield CounterMetricFamily("labkernels_prompt_tokens", "Tokens of prompts", s.prompt_tokens)
        yield CounterMetricFamily("labkernels_prompt_tokens_shared", "Tokens of prompts found in the cache", s.shared_tokens)
        yield CounterMetricFamily("labkernels_generated_tokens", "Tokens of answers", s.generated_tokens)
        yield CounterMetricFamily("labkernels_preemptions", "Requests that gave their pages back and were computed again", s.preemptions)
        yield CounterMetricFamily("labkernels_passes", "Passes through the model", s.passes)
