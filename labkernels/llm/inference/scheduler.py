"""Continuous batching: who gets the next pass through the model, and the pages for it.

Notable:
- every pass has new members: a request joins as soon as there are pages for it and leaves with its last token; nobody waits for a batch to end
- prompts are computed in chunks, packed one after the other without padding, beside the answers that are being written
- a prompt that begins like another one shares its pages and is not computed again
- when pages run out, the request that came last gives its own back and is computed again later, answer so far included: nothing is lost, and
  whoever came first always goes on, so that all come to their end
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from labkernels.errors import ArgumentError
from labkernels.llm.inference.cache import EngineCache
from labkernels.llm.inference.requests import Request


@dataclass
class Prefill:
    """Chunks of prompts for one pass: the tokens of each, which the cache has slots for."""

    chunks: dict[Request, list[int]]

    @property
    def complete(self) -> list[Request]:
        """Those of which the cache then holds all but what comes out: they get a token."""
        return [request for request in self.chunks if request.computed + len(self.chunks[request]) == request.length]


class Scheduler:
    """Requests from their arrival to their end. Tokens are computed by others, between `prefill()` or `decode()` and `computed()`.

    `max_batch` requests run at a time; `chunk_tokens` of prompts are in a pass at most, all requests' together.
    """

    def __init__(self, cache: EngineCache, max_batch: int, chunk_tokens: int, max_seq_len: int):
        self.cache, self.max_batch, self.chunk_tokens, self.max_seq_len = cache, max_batch, chunk_tokens, max_seq_len
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in the order of their arrival
        self.preemptions = 0
        self.shared_tokens = 0  # of prompts, found in the cache
        self._next_id = 0

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def add(self, request: Request) -> None:
        """Raises ArgumentError for one that could never be computed."""
        total = len(request.prompt) + request.params.max_new_tokens
        if not request.prompt:
            raise ArgumentError("generate: a prompt has no tokens; it needs at least one")
        if total > self.max_seq_len:
            raise ArgumentError(
                f"generate: a prompt of {len(request.prompt)} tokens and max_new_tokens {request.params.max_new_tokens} are {total}; "
                f"the engine's max_seq_len is {self.max_seq_len}"
            )
        pages = self.cache.pages
        room = pages.num_pages * pages.page_size
        if total - 1 > room:  # the last token is never read
            raise ArgumentError(
                f"generate: a prompt of {len(request.prompt)} tokens and max_new_tokens {request.params.max_new_tokens} need a cache of {total - 1}; "
                f"it holds {room} tokens"
            )
        self._next_id += 1
        request.id = self._next_id
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """It is finished, or cancelled: its pages are free."""
        if request.sequence is not None:
            self.cache.finish(request.sequence)
            request.sequence = None
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def prefill(self) -> Prefill | None:
        """Chunks of those that run and are not computed up to their end, then of new ones, as far as there are pages."""
        budget, chunks = self.chunk_tokens, {}
        for request in list(self.running):
            if request.sequence is None or self._decodes(request) or not budget:
                continue
            chunk = request.upcoming(budget)
            if not self._make_room(request, len(chunk), chunks):
                return Prefill(chunks) if chunks else None  # nobody new takes what it waits for
            chunks[request] = chunk
            budget -= len(chunk)
        while self.waiting and budget and len(self.running) < self.max_batch:
            request = self.waiting[0]
            request.sequence, request.computed = self.cache.add(request.upcoming(request.length))
            chunk = request.upcoming(budget)
            if self._pages({**chunks, request: chunk}) > self.cache.pages.free_pages:
                self.cache.finish(request.sequence)
                request.sequence, request.computed = None, 0
                break
            self.shared_tokens += request.computed
            self._join(self.waiting.popleft())
            chunks[request] = chunk
            budget -= len(chunk)
        return Prefill(chunks) if chunks else None

    def decode(self) -> list[Request]:
        """Those that get their next token from their last one. There are pages for one more token of each."""
        granted: dict[Request, list[int]] = {}
        decoding = [request for request in self.running if self._decodes(request)]
        if sum(self.cache.pages.pages_needed(request.sequence, 1) for request in decoding) <= self.cache.pages.free_pages:
            return decoding
        for request in decoding:
            if request.sequence is not None and self._make_room(request, 1, granted):
                granted[request] = request.upcoming(1)
        return list(granted)

    def steps(self, requests: list[Request], most: int) -> list[int]:
        """How many tokens in a row each of these may get without anybody looking, as far as there are pages for them. Where others wait, as many as
        the first to end has left, so that somebody joins in its place at once. Else its place stays empty, until half of them are, and a pass
        for half as many is the quicker one."""
        left, pages = sorted(request.remaining for request in requests), self.cache.pages
        count = min(most, left[0] if self.waiting else left[(len(left) - 1) // 2])
        while True:
            counts = [min(count, request.remaining) for request in requests]
            if count == 1 or sum(pages.pages_needed(request.sequence, own) for request, own in zip(requests, counts)) <= pages.free_pages:
                return counts
            count //= 2

    def _decodes(self, request: Request) -> bool:
        return bool(request.tokens) and request.computed == request.length - 1

    def _pages(self, chunks: dict[Request, list[int]]) -> int:
        return sum(self.cache.pages.pages_needed(request.sequence, len(chunk)) for request, chunk in chunks.items())

    def _make_room(self, request: Request, tokens: int, beside: dict[Request, list[int]]) -> bool:
        """Pages for so many more tokens, beside those that `beside` will take: from those that came later, if need be. False: it has to wait for
        those that came before."""
        while self._pages({**beside, request: [0] * tokens}) > self.cache.pages.free_pages:
            last = self.running[-1]
            if last is request:
                return False
            beside.pop(last, None)
            self._preempt(last)
        return True

    def _preempt(self, request: Request) -> None:
        self.cache.finish(request.sequence)
        request.sequence, request.computed, request.state = None, 0, "waiting"
        request.preemptions += 1
        self.preemptions += 1
        self.running.remove(request)
        self.waiting.appendleft(request)

    def _join(self, request: Request) -> None:
        request.state = "running"
        self.running.append(request)
        self.running.sort(key=lambda each: each.id)
