"""What is asked of the engine and what it answers: settings of a request, its state, the text that may be shown, events of a stream.

Notable:
- a request knows nothing of batches or pages; `take` is all that happens to it, a token at a time, and says what may be shown of it
- text that could be the beginning of a stop string is held back until it is certain; a stop string itself is never shown
- draws depend on a request's seed and on how many tokens it has, on nothing else: the same alone, in a batch, and after it was pre-empted
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from labkernels.errors import ArgumentError, LabKernelsError

MOST_TOP_K = 2**31 - 1  # more than any vocabulary; kernels count in 32 bits


class NoDistribution(LabKernelsError):
    """Logits with NaN or infinity: nothing can be drawn. The model's weights, or its arithmetic in 16 bits, are broken."""


@dataclass(frozen=True)
class SamplingParams:
    """How a request is to be continued. Raises ArgumentError that names the setting."""

    max_new_tokens: int = 128  # at most so many; fewer where something stops it
    temperature: float = 0.0  # divides the logits; 0 takes the likeliest token
    top_k: int = 0  # draws from the so many likeliest; 0: from all
    top_p: float = 1.0  # draws from the fewest that make up this probability
    min_p: float = 0.0  # draws from those with at least this share of the likeliest's probability
    repetition_penalty: float = 1.0  # divides positive logits of tokens that stand in the prompt or the answer, multiplies negative ones
    seed: int | None = None  # of the draws; None: another one each time
    stop: tuple[str | int, ...] = ()  # strings and tokens that end the answer; strings are not part of it
    ignore_eos: bool = False  # go on after the model's own end tokens
    logprobs: int | None = None  # None: no log-probabilities; n: of the chosen token, and of the n likeliest beside it

    def __post_init__(self):
        stop = self.stop
        stop = () if stop is None else (stop,) if isinstance(stop, str | int) else tuple(stop)
        object.__setattr__(self, "stop", stop)
        for one in stop:
            if isinstance(one, bool) or not isinstance(one, str | int) or one == "":
                raise ArgumentError(f"generate: stop has {one!r}; it must hold strings that are not empty, and tokens")
        whole = {"max_new_tokens": 1, "top_k": 0}
        for name, least in whole.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ArgumentError(f"generate: {name} is {value!r}; it must be an int of at least {least}")
        object.__setattr__(self, "top_k", min(self.top_k, MOST_TOP_K))
        ranges = {"temperature": (0, 1e6), "top_p": (0, 1), "min_p": (0, 1), "repetition_penalty": (1e-6, 1e6)}
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                raise ArgumentError(f"generate: {name} is {value!r}; it must be a number from {least} to {most}")
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise ArgumentError(f"generate: seed is {self.seed!r}; it must be an int or None")
        if self.logprobs is True or self.logprobs is False:
            object.__setattr__(self, "logprobs", 0 if self.logprobs else None)
        if self.logprobs is not None and (not isinstance(self.logprobs, int) or not 0 <= self.logprobs <= 100):
            raise ArgumentError(f"generate: logprobs is {self.logprobs!r}; it must be None or from 0 to 100")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


class Event(NamedTuple):
    """One new token of a request. `text` may be empty: of a character that is not whole, or held back as it might begin a stop string."""

    request: Request
    token: int | None  # None: nothing but an end, of a request that was cancelled
    text: str
    logprob: float | None = None  # under softmax(logits) of the model, before temperature and everything else
    top_logprobs: dict[int, float] | None = None
    finish_reason: str | None = None  # "stop", "length", "cancelled", "error"; None while it goes on


@dataclass(frozen=True)
class Completion:
    """An answer. `tokens` without what stopped it where that is a token; `text` without the stop string."""

    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    finish_reason: str
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[dict[int, float], ...] | None = None
    seed: int | None = None
    error: str | None = None  # why finish_reason is "error"
    first_token_s: float | None = None  # from the request to its first token
    seconds: float | None = None


class StopStrings:
    """Lets text through up to the first stop string: `push(text)` gives what may be shown, and whether one was found."""

    def __init__(self, stops: Sequence[str]):
        self._stops, self._held = tuple(stops), ""

    def push(self, text: str) -> tuple[str, bool]:
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            shown, self._held = self._held[: min(found)], ""
            return shown, True
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def finish(self) -> str:
        """What was held back for a stop string that never came."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """How much of the end might begin this stop string."""
        return next((n for n in range(min(len(stop) - 1, len(self._held)), 0, -1) if self._held.endswith(stop[:n])), 0)


@dataclass(eq=False)
class Request:
    """A prompt on its way. `state` is "waiting", "running" or "finished"."""

    prompt: tuple[int, ...]
    params: SamplingParams
    id: int = 0
    end_ids: frozenset[int] = frozenset()  # tokens that end it: the model's, unless ignored, and those in `stop`
    stream: object = None  # labkernels.llm.data.streaming.TextStream; None without a tokenizer
    heard: deque[Event] | None = None  # where its events wait for who listens, whoever makes the step that they come from
    state: str = "waiting"
    finish_reason: str | None = None
    error: str | None = None
    tokens: list[int] = field(default_factory=list)  # drawn so far
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    sequence: int | None = None  # in the cache, while running
    computed: int = 0  # tokens of prompt and answer that the cache holds
    preemptions: int = 0
    arrived: float = field(default_factory=time.perf_counter)
    first_token_at: float | None = None
    finished_at: float | None = None

    def __post_init__(self):
        self.seed = secrets.randbits(62) if self.params.seed is None else self.params.seed
        self._stops = StopStrings([one for one in self.params.stop if isinstance(one, str)])

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt) + len(self.tokens)

    @property
    def remaining(self) -> int:
        """Tokens that it may still get."""
        return self.params.max_new_tokens - len(self.tokens)

    def upcoming(self, most: int) -> list[int]:
        """The next tokens that the cache does not hold, at most so many."""
        end = min(self.length, self.computed + most)
        prompt = self.prompt[self.computed : end]
        start = max(0, self.computed - len(self.prompt))
        return [*prompt, *self.tokens[start : max(0, end - len(self.prompt))]]

    def take(self, token: int, logprob: float | None = None, top: dict[int, float] | None = None) -> Event:
        """A token was drawn. What may be shown of it, and whether it was the last."""
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()
        if token in self.end_ids:
            return self.finish("stop", token, self._rest(), logprob, top)
        self.tokens.append(token)
        if self.params.logprobs is not None:
            self.logprobs.append(logprob)
            self.top_logprobs.append(top or {})
        shown, stopped = self._stops.push(self.stream.push(token)) if self.stream is not None else ("", False)
        if stopped:
            return self.finish("stop", token, shown, logprob, top)
        if self.remaining == 0:
            return self.finish("length", token, shown + self._rest(), logprob, top)
        self.text += shown
        return Event(self, token, shown, logprob, top)

    def fail(self, error: str) -> Event:
        """It ends here, with what it has."""
        self.error = error
        return self.finish("error", None, self._rest())

    def finish(self, reason: str, token: int | None = None, text: str = "", logprob=None, top=None) -> Event:
        self.state, self.finish_reason, self.finished_at = "finished", reason, time.perf_counter()
        self.text += text
        return Event(self, token, text, logprob, top, reason)

    def completion(self) -> Completion:
        wanted = self.params.logprobs is not None
        first = None if self.first_token_at is None else self.first_token_at - self.arrived
        return Completion(
            self.prompt, tuple(self.tokens), self.text, self.finish_reason or "cancelled", tuple(self.logprobs) if wanted else None,
            tuple(self.top_logprobs) if wanted else None, None if self.params.greedy else self.seed, self.error, first,
            None if self.finished_at is None else self.finished_at - self.arrived,
        )  # fmt: skip

    def _rest(self) -> str:
        """What was held back: an unfinished character, and what might have begun a stop string."""
        if self.stream is None:
            return ""
        shown, stopped = self._stops.push(self.stream.finish())
        return shown if stopped else shown + self._stops.finish()
