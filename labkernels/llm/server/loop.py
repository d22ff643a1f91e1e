"""One thread owns the engine; any number of coroutines wait for what it writes.

Notable:
- the event loop never waits for a pass through the model: what it wants is put into an inbox, which the thread empties between two passes
- events go back to their listeners in one call a pass, not one a token
- a listener that goes away is cancelled between two passes, and its pages are free
- a pass that fails ends the requests in it, which are told so; the next ones are served
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import torch

from labkernels.llm.inference.engine import Engine, Stats
from labkernels.llm.inference.requests import Event, Request, SamplingParams
from labkernels.llm.server.limits import Refused

log = logging.getLogger(__name__)
STEP_LIMIT_S = 60.0  # a pass that takes longer makes /health say so


class Answer:
    """One answer on its way: iterate over its events. Whoever leaves early must call `EngineLoop.cancel`."""

    def __init__(self, request: Request):
        self.request = request
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            event = await self._events.get()
            yield event
            if event.finish_reason:
                return


class EngineLoop:
    """`await submit(...)` gives an Answer; `stats` is how full the engine was after the last pass."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.stats: Stats = engine.stats
        self.open = 0  # answers that are admitted and not finished; who admits them counts them
        self._answers: dict[Request, Answer] = {}  # the thread's
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stepping_since: float | None = None
        self._closed = False  # nobody takes orders any more

    # From the event loop

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def stop(self, limit_s: float = 30.0) -> None:
        """Cancel what is not finished, and end the thread."""
        self._inbox.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, limit_s)

    @property
    def alive(self) -> bool:
        """Does the thread run, and does its pass end in time?"""
        since = self._stepping_since
        stuck = since is not None and self._loop is not None and self._loop.time() - since > STEP_LIMIT_S
        return self._thread is not None and self._thread.is_alive() and not stuck

    async def submit(self, prompt: list[int], params: SamplingParams) -> Answer:
        """One of those that `open` counts already. Raises ArgumentError for what can never be computed, Refused where the thread has ended."""
        done = self._loop.create_future()

        def put() -> None:
            try:
                if self._closed:
                    raise Refused("the engine has ended; the server's log says why", 503)
                answer = Answer(self.engine.submit(prompt, params))
                self._answers[answer.request] = answer
                self._tell(_settle, done, answer, None)
            except Exception as error:
                self._tell(_settle, done, None, error)

        self._inbox.put(put)
        if self._closed:
            self._refuse_orders()
        try:
            return await asyncio.shield(done)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):  # it may be on its way already: nobody will listen
                done.add_done_callback(self._forsaken)
            else:
                self.open -= 1
            raise

    def _forsaken(self, done: asyncio.Future) -> None:
        if done.exception() is not None:
            self.open -= 1
        else:
            self.cancel(done.result())

    def cancel(self, answer: Answer) -> None:
        """Between two passes. No harm to what is finished."""
        self._inbox.put(lambda: self._cancel(answer.request))

    def end_all(self, why: str) -> None:
        """Between two passes, whoever still listens is told that no more comes, and why."""
        self._inbox.put(lambda: [self._cancel(request, why) for request in list(self._answers)])

    # In the thread

    def _run(self) -> None:
        try:
            if self.engine.device.type == "cuda":
                torch.cuda.set_device(self.engine.device)  # which GPU is the current one is each thread's own matter
            self._serve()
        except Exception:
            log.exception("the engine's thread has ended")
        self._closed = True
        self._refuse_orders()
        for request in list(self._answers):
            self._cancel(request)

    def _refuse_orders(self) -> None:
        """Nobody waits for an answer that nobody will give. Whoever finds the loop closed calls it, in whichever thread."""
        with contextlib.suppress(queue.Empty):
            while True:
                if (order := self._inbox.get_nowait()) is not None:
                    order()

    def _serve(self) -> None:
        while self._take_orders():
            if self.engine.idle:
                continue
            events: list[Event] = []
            self._stepping_since = self._loop.time()
            try:
                events = self.engine.step()
            except Exception:
                log.exception("a pass through the model failed; the requests in it are ended")
            self._stepping_since = None
            told = {event.request for event in events if event.finish_reason}
            events += [Event(r, None, "", finish_reason=r.finish_reason) for r in self._answers if r.state == "finished" and r not in told]
            self._publish(events)

    def _take_orders(self) -> bool:
        """Everything in the inbox; where there is nothing to compute, wait for it. False: the end."""
        wait = self.engine.idle
        while True:
            try:
                order = self._inbox.get(block=wait)
            except queue.Empty:
                return True
            if order is None:
                return False
            order()
            wait = False

    def _cancel(self, request: Request, why: str | None = None) -> None:
        if request in self._answers:
            self.engine.cancel(request)
            request.error = request.error or why
            self._publish([Event(request, None, "", finish_reason="error" if why else request.finish_reason)])

    def _publish(self, events: list[Event]) -> None:
        heard = [(answer, event) for event in events if (answer := self._answers.get(event.request))]
        for event in events:
            if event.finish_reason:
                self._answers.pop(event.request, None)
        self._tell(self._deliver, heard, self.engine.stats)

    def _tell(self, function: Callable, *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended before us
            self._loop.call_soon_threadsafe(function, *arguments)

    def _deliver(self, heard: list[tuple[Answer, Event]], stats: Stats) -> None:
        self.stats = stats
        for answer, event in heard:
            answer._events.put_nowait(event)
            self.open -= event.finish_reason is not None


def _settle(done: asyncio.Future, answer: Answer | None, error: Exception | None) -> None:
    if not done.done():
        done.set_result(answer) if error is None else done.set_exception(error)
