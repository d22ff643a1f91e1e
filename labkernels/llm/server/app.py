"""The routes of the server, and how it is run and ended.

Notable:
- nothing is computed here: prompts are tokenised in threads, the model runs in the engine's own (loop.py)
- a client that goes away is noticed at once, streaming or not, and its pages are free after the pass that is under way
- SIGTERM and Ctrl-C: no new requests, those in flight have `grace_s` seconds, then they are cancelled, and their clients told so
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from labkernels.errors import ArgumentError
from labkernels.llm.inference.engine import Engine
from labkernels.llm.inference.requests import Event
from labkernels.llm.server.api import ChatRequest, CompletionRequest, Sampling, Writer, usage
from labkernels.llm.server.limits import Gate, Limits, Refused, sse
from labkernels.llm.server.loop import Answer, EngineLoop
from labkernels.llm.server.metrics import Counted, Metrics

ENDING = "the server is shutting down"
DEFAULT_NEW_TOKENS = 16  # of a completion that does not say; OpenAI's


def create_app(engine: Engine, name: str, *, limits: Limits = Limits(), api_key: str | None = None) -> FastAPI:
    """The application that serves `engine` under the model name `name`. Raises ArgumentError for an engine without a tokenizer."""
    if engine.tokenizer is None:
        raise ArgumentError("create_app: the engine has no tokenizer; a server takes and gives text")
    if api_key == "":
        raise ArgumentError("create_app: api_key is empty; leave it out to let everybody in")
    service = Service(engine, name, limits)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.loop.start()
        yield
        await service.loop.stop()

    app = FastAPI(title="LabKernels", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service

    @app.get("/health")
    async def health() -> JSONResponse:
        alive = service.loop.alive
        return JSONResponse({"status": "ok" if alive else "the engine does not answer", "model": name}, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": [service.described()]}

    @app.get("/v1/models/{model:path}")
    async def one_model(model: str) -> dict:
        service.check_model(model)
        return service.described()

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await service.complete("text", body, request)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await service.complete("chat", body, request)

    app.exception_handler(Refused)(lambda request, error: error.response())
    app.exception_handler(ArgumentError)(lambda request, error: Refused(str(error)).response())
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(lambda request, error: Refused(str(error.detail), error.status_code).response())
    app.exception_handler(Exception)(lambda request, error: Refused("the server failed; its log says why", 500).response())
    app.add_middleware(Gate, limits=limits, api_key=api_key)
    app.add_middleware(Counted, counter=service.metrics.requests)
    return app


class Service:
    """One engine, one model's name, and everybody who asks."""

    def __init__(self, engine: Engine, name: str, limits: Limits):
        self.engine, self.name, self.limits = engine, name, limits
        self.loop = EngineLoop(engine)
        self.metrics = Metrics(self.loop)
        self.started = int(time.time())
        pages = engine.cache.pages
        self.longest = min(engine.max_seq_len, pages.num_pages * pages.page_size)  # tokens of prompt and answer
        self._usual_s = 1.0  # that an answer takes, lately

    def described(self) -> dict:
        return {"id": self.name, "object": "model", "created": self.started, "owned_by": "labkernels", "max_model_len": self.longest}

    def check_model(self, model: str) -> None:
        if model != self.name:
            raise Refused(f"there is no model {model!r} here; this server has {self.name!r}", 404, "model_not_found", "model")

    async def complete(self, kind: str, body: Sampling, request: Request) -> Response:
        """The answers to a request, whole or as a stream."""
        self.check_model(body.model)
        body.refuse_unsupported()
        prompts = await asyncio.to_thread(self._tokens, kind, body)
        count = len(prompts) * body.n
        if count > self.limits.choices:
            raise Refused(f"the request asks for {count} answers; this server gives at most {self.limits.choices} at once", param="n")
        if self.loop.open + count > self.engine.scheduler.max_batch + self.limits.queue:
            wait = math.ceil(self._usual_s * (1 + self.loop.open / self.engine.scheduler.max_batch) / 2)
            raise Refused(
                f"{self.loop.open} answers are under way or waiting already; come again later",
                429,
                "queue_full",
                retry_after_s=min(60, max(1, wait)),
            )
        default = DEFAULT_NEW_TOKENS if kind == "text" else None
        wanted = [(tokens, body.params(self.limits, self.longest - len(tokens), i, default)) for tokens in prompts for i in range(body.n)]
        if not self.loop.alive:
            raise Refused("the engine does not answer; the server's log says why", 503)
        answers: list[Answer] = []
        self.loop.open += count  # at once, so that nobody gets in between
        try:
            for tokens, params in wanted:
                answers.append(await self.loop.submit(tokens, params))
        except BaseException:
            self.loop.open -= count - len(answers) - 1  # the one that failed counts itself
            self.leave(answers)
            raise
        writer = Writer(kind, self.name, self.engine.tokenizer)
        prompt_tokens = sum(map(len, prompts))
        echoed = [tokens for tokens in prompts for _ in range(body.n)] if getattr(body, "echo", False) else None
        before = [""] * count if echoed is None else [self.engine.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in echoed]
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            events = self._stream(writer, answers, before, prompt_tokens if with_usage else None)
            return StreamingResponse(
                events, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            )
        found = await self._whole(answers, request)
        if failed := [events[-1] for events in found if events[-1].finish_reason == "error"]:
            raise _failed(failed[0])
        texts = [(text + "".join(event.text for event in events), events) for text, events in zip(before, found)]
        return JSONResponse(writer.whole(texts, usage(prompt_tokens, sum(len(answer.request.tokens) for answer in answers))))

    def leave(self, answers: list[Answer]) -> None:
        """Nobody listens to these any more: what is not finished is cancelled. All are counted."""
        for answer in answers:
            request = answer.request
            if request.state != "finished":
                self.loop.cancel(answer)
            elif request.finished_at is not None:
                self._usual_s += 0.1 * (request.finished_at - request.arrived - self._usual_s)
            self.metrics.finished(request)

    async def _whole(self, answers: list[Answer], request: Request) -> list[list[Event]]:
        """The events of all. A client that goes away meanwhile ends them."""

        async def collect(answer: Answer) -> list[Event]:
            return [event async for event in answer]

        gone = asyncio.create_task(_disconnected(request))
        all_of_them = asyncio.gather(*map(collect, answers))
        try:
            await asyncio.wait([all_of_them, gone], return_when=asyncio.FIRST_COMPLETED)
            if not all_of_them.done():
                raise Refused("the client went away", 499)
            return all_of_them.result()
        finally:
            gone.cancel()
            all_of_them.cancel()
            self.leave(answers)

    async def _stream(self, writer: Writer, answers: list[Answer], before: list[str], prompt_tokens: int | None) -> AsyncIterator[str]:
        """Server-sent events of all answers, as their tokens come; `prompt_tokens` is given where the usage is wanted at the end."""
        ready: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

        async def forward(index: int, answer: Answer) -> None:
            async for event in answer:
                ready.put_nowait((index, event))

        forwarding = [asyncio.create_task(forward(index, answer)) for index, answer in enumerate(answers)]
        begun, left, offsets = set(), len(answers), [0] * len(answers)
        try:
            while left:
                index, event = await ready.get()
                first = index not in begun
                begun.add(index)
                if event.finish_reason == "error":
                    yield sse(_failed(event).body())
                    return
                left -= event.finish_reason is not None
                if event.text or event.finish_reason or first or event.logprob is not None:
                    chunk = writer.chunk(index, event, (before[index] if first else "") + event.text, first, offsets[index])
                    offsets[index] += sum(map(len, (chunk["choices"][0]["logprobs"] or {}).get("tokens", ())))
                    yield sse(chunk)
            if prompt_tokens is not None:
                yield sse(writer.usage_chunk(usage(prompt_tokens, sum(len(answer.request.tokens) for answer in answers))))
            yield sse("[DONE]")
        finally:
            for task in forwarding:
                task.cancel()
            self.leave(answers)

    def _tokens(self, kind: str, body: Sampling) -> list[list[int]]:
        """The prompts, in a thread. Raises Refused, ArgumentError."""
        tokenizer, longest = self.engine.tokenizer, self.longest
        if kind == "chat":
            found = [tokenizer.apply_chat_template([message.plain() for message in body.messages])]
        else:
            found = [tokenizer.encode(prompt) if isinstance(prompt, str) else prompt for prompt in body.prompts()]
        for tokens in found:
            if len(tokens) + (body.wanted_tokens() or 1) > longest:
                raise Refused(
                    f"this model's context is {longest} tokens; the prompt has {len(tokens)}, the answer may have {body.wanted_tokens() or 1}",
                    code="context_length_exceeded", param="messages" if kind == "chat" else "prompt",
                )  # fmt: skip
        return found


def _failed(event: Event) -> Refused:
    why = event.request.error
    return Refused(why or "a pass through the model failed; the server's log says why", 503 if why == ENDING else 500)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    """What pydantic found, as OpenAI says it: the first of it, with the field's name."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return Refused("the body is not JSON").response()
    if first["type"] == "extra_forbidden":
        return Refused(f"unrecognized request argument: {where[-1]}", param=where[-1], code="unknown_parameter").response()
    if first["type"] == "too_short" and where:
        return Refused(f"{where[0]} is empty", param=where[0]).response()
    return Refused(f"{'.'.join(where) or 'the body'}: {first['msg']}", param=where[0] if where else None).response()


def make_server(app: FastAPI, host: str, port: int, *, grace_s: int, log_level: str):
    """A uvicorn.Server that ends as it is said above."""
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets=None) -> None:
            ending = asyncio.get_running_loop().call_later(grace_s, app.state.service.loop.end_all, ENDING)
            try:
                await super().shutdown(sockets)
            finally:
                ending.cancel()

    limit_s = grace_s + 5  # for the pass that is under way, and for the last words
    return Server(
        uvicorn.Config(
            app, host=host, port=port, log_level=log_level, timeout_graceful_shutdown=limit_s, timeout_keep_alive=30, server_header=False
        )
    )


def run(app: FastAPI, host: str = "127.0.0.1", port: int = 8000, *, grace_s: int = 30, log_level: str = "info") -> None:
    """Serve until SIGTERM or Ctrl-C."""
    server = make_server(app, host, port, grace_s=grace_s, log_level=log_level)
    # uvicorn raises them again at the end: a graceful end is no failure
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


__all__ = ["Service", "create_app", "make_server", "run"]
