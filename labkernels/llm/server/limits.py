"""How much a client may ask for, and what it is told when that was too much: errors in OpenAI's form, with the status that clients know.

Notable: a body that is too long is refused before it is parsed, whether its length was announced or not; who finds the queue full is told
when to come again (429, Retry-After), which OpenAI's client does by itself; keys are compared in constant time.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from dataclasses import dataclass

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labkernels.errors import ArgumentError

OPEN_PATHS = ("/health",)  # need no key


@dataclass(frozen=True)
class Limits:
    """What one request and all together may take. Raises ArgumentError that names the field."""

    body_bytes: int = 1 << 20  # of a request
    new_tokens: int = 4096  # of an answer; the model's context is another limit
    choices: int = 16  # answers to one request: prompts times n
    queue: int = 256  # answers that wait, beside those that are being written
    top_logprobs: int = 20
    body_s: int = 30  # in which a request must be there

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < (0 if name in ("queue", "top_logprobs") else 1):
                raise ArgumentError(f"Limits: {name} is {value!r}; it must be a positive int")


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(
        self, message: str, status: int = 400, code: str | None = None, param: str | None = None, retry_after_s: int | None = None
    ):
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after_s = status, code, param, retry_after_s

    def response(self) -> JSONResponse:
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)

    def body(self) -> dict:
        kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class Gate:
    """ASGI: lets requests pass that have the key, if there is one, and whose body is not too long, which is then read whole."""

    def __init__(self, app: ASGIApp, limits: Limits, api_key: str | None = None):
        self.app, self.limits, self.key = app, limits, None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        if self.key is not None and scope["path"] not in OPEN_PATHS and not self._admits(headers.get(b"authorization", b"")):
            refused = Refused("the API key is missing or wrong: send Authorization: Bearer KEY", 401, "invalid_api_key")
            return await refused.response()(scope, receive, send)
        try:
            async with asyncio.timeout(self.limits.body_s):
                body = await self._body(headers, receive)
        except TimeoutError:
            refused = Refused(f"the request was not whole after {self.limits.body_s} s", 408, "request_timeout")
            return await refused.response()(scope, receive, send)
        if body is None:
            refused = Refused(
                f"the request is longer than {self.limits.body_bytes} bytes, which is this server's limit", 413, "request_too_large"
            )
            response = refused.response()
            response.headers["Connection"] = "close"  # the rest of the body is not read
            return await response(scope, receive, send)
        replayed = False

        async def again() -> Message:
            nonlocal replayed
            if not replayed:
                replayed = True
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        await self.app(scope, again, send)

    def _admits(self, authorization: bytes) -> bool:
        scheme, _, given = authorization.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.key)

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """The whole body; None if it is too long."""
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self.limits.body_bytes:
            return None
        pieces, size = [], 0
        while True:
            message = await receive()
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > self.limits.body_bytes:
                return None
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                return b"".join(pieces)


def sse(content: dict | str) -> str:
    """One event of a stream."""
    return f"data: {content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)}\n\n"
