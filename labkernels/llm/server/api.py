"""What a request may say, and the answers, as OpenAI spells them.

Notable: what this server cannot do is refused by name, not silently left out (tools, penalties by count, logit_bias); what only concerns
OpenAI's own bookkeeping is taken and has no effect. Beside OpenAI's settings there are top_k, min_p, repetition_penalty and ignore_eos, which
its client sends in `extra_body`.
"""

from __future__ import annotations

import itertools
import time
import uuid
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from labkernels.llm.inference.requests import Event, SamplingParams
from labkernels.llm.server.limits import Limits, Refused


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class Sampling(BaseModel):
    """What both kinds of requests share."""

    model_config = ConfigDict(extra="forbid")

    model: str
    n: int = Field(1, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0)
    ignore_eos: bool = False
    # refused unless they ask for nothing
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    # of no effect here
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    unsupported: ClassVar[tuple[str, ...]] = ("presence_penalty", "frequency_penalty", "logit_bias")

    def refuse_unsupported(self) -> None:
        """Raises Refused for a setting that this server does not have."""
        for name in self.unsupported:
            if getattr(self, name):
                raise Refused(f"{name} is not supported by this server", param=name, code="unsupported_parameter")

    def wanted_tokens(self) -> int | None:
        return self.max_tokens

    @abstractmethod
    def logprobs_wanted(self, limits: Limits) -> int | None:
        """How many of the likeliest tokens are told with each one; None: none is."""

    def params(self, limits: Limits, room: int, number: int, default: int | None = None) -> SamplingParams:
        """For answer `number` of this request, which has room for so many tokens. Raises Refused, ArgumentError."""
        wanted = self.wanted_tokens()
        if wanted is not None and wanted > limits.new_tokens:
            raise Refused(f"max_tokens is {wanted}; this server gives at most {limits.new_tokens}", param="max_tokens")
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > 16:
            raise Refused(f"stop has {len(stops)} strings; at most 16 are taken", param="stop")
        return SamplingParams(
            max_new_tokens=wanted or max(1, min(limits.new_tokens, room, default or room)), temperature=self.temperature, top_k=self.top_k,
            top_p=self.top_p, min_p=self.min_p, repetition_penalty=self.repetition_penalty,
            seed=None if self.seed is None else (self.seed + number) & (1 << 62) - 1,
            stop=tuple(stops), ignore_eos=self.ignore_eos, logprobs=self.logprobs_wanted(limits),
        )  # fmt: skip


class CompletionRequest(Sampling):
    """POST /v1/completions"""

    prompt: str | list[str] | list[int] | list[list[int]] = Field(min_length=1)
    logprobs: int | None = Field(None, ge=0)
    echo: bool = False
    suffix: str | None = None
    best_of: int | None = Field(None, ge=1)

    unsupported: ClassVar[tuple[str, ...]] = (*Sampling.unsupported, "suffix")

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if self.best_of not in (None, self.n):
            raise Refused("best_of is not supported by this server, but as large as n", param="best_of", code="unsupported_parameter")
        if self.echo and self.logprobs is not None:
            raise Refused(
                "echo with logprobs is not supported by this server: the prompt's are not computed",
                param="echo",
                code="unsupported_parameter",
            )

    def prompts(self) -> list[str | list[int]]:
        alone = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if alone else list(self.prompt)

    def logprobs_wanted(self, limits: Limits) -> int | None:
        return _within(self.logprobs, limits, "logprobs")


class Message(BaseModel):
    """What was said in a conversation."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """For the template. Raises Refused for pictures and the like."""
        if isinstance(self.content, str | None):
            return {"role": self.role, "content": self.content or ""}
        for part in self.content:
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise Refused(f"messages: content has a part of type {part.get('type')!r}; this model reads text alone", param="messages")
        return {"role": self.role, "content": "".join(part["text"] for part in self.content)}


class ChatRequest(Sampling):
    """POST /v1/chat/completions"""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0)
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    functions: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None  # of no effect, as there are none
    reasoning_effort: str | None = None  # of no effect

    unsupported: ClassVar[tuple[str, ...]] = (*Sampling.unsupported, "tools", "functions")

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if (self.response_format or {}).get("type", "text") != "text":
            raise Refused(
                "response_format is not supported by this server, but for text", param="response_format", code="unsupported_parameter"
            )

    def wanted_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def logprobs_wanted(self, limits: Limits) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise Refused("top_logprobs needs logprobs to be true", param="top_logprobs")
        return _within(self.top_logprobs or 0, limits, "top_logprobs") if self.logprobs else None


def _within(value: int | None, limits: Limits, name: str) -> int | None:
    if value is not None and value > limits.top_logprobs:
        raise Refused(f"{name} is {value}; this server gives at most {limits.top_logprobs}", param=name)
    return value


class Writer:
    """The pieces of one response: `chunk` for a stream, `whole` for all at once. `kind` is "text" or "chat"."""

    def __init__(self, kind: str, model: str, tokenizer):
        self.kind, self.tokenizer = kind, tokenizer
        self.head = {"id": f"{'cmpl' if kind == 'text' else 'chatcmpl'}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def chunk(self, index: int, event: Event, text: str, first: bool, offset: int = 0) -> dict:
        """`offset`: characters of the answer before this piece."""
        choice: dict[str, Any] = {"index": index, "finish_reason": _reason(event.finish_reason), "logprobs": self.logprobs([event], offset)}
        if self.kind == "text":
            choice["text"] = text
        else:
            choice["delta"] = ({"role": "assistant"} if first else {}) | ({"content": text} if text or first else {})
        return {**self.head, "object": "text_completion" if self.kind == "text" else "chat.completion.chunk", "choices": [choice]}

    def usage_chunk(self, usage: dict) -> dict:
        return {**self.head, "object": "text_completion" if self.kind == "text" else "chat.completion.chunk", "choices": [], "usage": usage}

    def whole(self, answers: Sequence[tuple[str, list[Event]]], usage: dict) -> dict:
        choices = []
        for index, (text, events) in enumerate(answers):
            choice: dict[str, Any] = {"index": index, "finish_reason": _reason(events[-1].finish_reason), "logprobs": self.logprobs(events)}
            choice |= {"text": text} if self.kind == "text" else {"message": {"role": "assistant", "content": text, "refusal": None}}
            choices.append(choice)
        return {**self.head, "object": "text_completion" if self.kind == "text" else "chat.completion", "choices": choices, "usage": usage}

    def logprobs(self, events: list[Event], offset: int = 0) -> dict | None:
        """Of the tokens that are part of the answer, in the form of the kind; the first begins at character `offset`."""
        events = [event for event in events if event.logprob is not None and event.token not in event.request.end_ids]
        if not events:
            return None
        if self.kind == "chat":
            tops = [[self._token(token, value) for token, value in (event.top_logprobs or {}).items()] for event in events]
            return {"content": [{**self._token(e.token, e.logprob), "top_logprobs": top} for e, top in zip(events, tops)], "refusal": None}
        tokens = [self._text(event.token) for event in events]
        offsets = list(itertools.accumulate(map(len, tokens[:-1]), initial=offset))
        tops = [{self._text(token): value for token, value in (event.top_logprobs or {}).items()} for event in events]
        return {"tokens": tokens, "token_logprobs": [e.logprob for e in events], "top_logprobs": tops, "text_offset": offsets}

    def _text(self, token: int) -> str:
        return self.tokenizer.decode([token])

    def _token(self, token: int, logprob: float) -> dict:
        text = self._text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def usage(prompt_tokens: int, completion_tokens: int) -> dict:
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": prompt_tokens + completion_tokens}


def _reason(reason: str | None) -> str | None:
    """OpenAI has no word for an answer that was given up: "length", for it is not whole."""
    return {"cancelled": "length", "error": "length"}.get(reason, reason)
