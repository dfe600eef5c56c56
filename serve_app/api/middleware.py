"""Wraps every request: gives it an id, and limits its body and the number of concurrent requests.

It is plain ASGI, because Starlette's middleware class would slow /ping down. Serve logs the requests.
"""

import asyncio
import re
from collections import Counter
from contextlib import suppress
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.body_limits import BodyLimit, RecordingPaths, body_limit
from serve_app.api.file_answer import wait_until_read
from serve_app.api.limits import SharedSlots
from serve_app.api.problems import problem
from serve_app.config import ApiArgs, InputArgs
from serve_app.errors import (
    BodyTooLarge,
    BodyTooSlow,
    InvalidRequest,
    SophiaError,
    TooManyRequests,
    UnsupportedMediaType,
)
from serve_app.jobs import new_id

_PROBES: Final = ("/ping", "/healthz", "/readyz")
PAGES_FILES: Final = "/docs-files"
_PAGES: Final = ("/docs", "/redoc")
_PAGES_POLICY: Final = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data:; worker-src blob:"
)
"""Allows nothing from other sites. FastAPI's pages have some inline script and style."""

_ABOUT_BODY: Final = (b"content-type", b"content-length", b"content-encoding")
_VALID_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class RequestMiddleware:
    """Sets the request id that Serve's log and `X-Request-ID` show, and refuses excess requests and unreadable bodies."""

    def __init__(
        self, app: ASGIApp, api: ApiArgs, inputs: InputArgs, recordings: RecordingPaths, slots: SharedSlots
    ) -> None:
        """`slots` are those of all requests but probes."""
        self._app = app
        self._api = api
        self._inputs = inputs
        self._recordings = recordings
        self._slots = slots

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        scope["request_id"] = _request_id(headers)
        if scope["path"] in _PROBES:
            await self._handle(scope, headers, receive, send)
            return
        try:
            with self._slots.hold():
                await self._handle(scope, headers, receive, send)
                if scope[
                    "app"
                ].state.context.watcher.is_stopping:  # then Serve must not end before the client has its answer
                    await wait_until_read(receive)
        except TooManyRequests as error:
            await _refuse(error, scope, receive, send)

    async def _handle(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        limit = body_limit(scope, headers, self._api, self._inputs, self._recordings)
        refusal = _repeated(scope) or _refusal(headers, limit)
        if refusal is not None:
            await _refuse(refusal, scope, receive, send)
            return
        if _is_head_of_get(scope):
            scope = {**scope, "method": "GET"}  # the server drops the body of the answer
        if scope["path"] in _PAGES:
            send = _with_policy(send)
        exchange = _Exchange(receive, send, limit)
        with suppress(BodyTooLarge, BodyTooSlow):
            await self._app(scope, exchange.receive, exchange.send)
        if exchange.refusal is not None and not exchange.answered:
            await _refuse(exchange.refusal, scope, receive, send)


def _repeated(scope: Scope) -> SophiaError | None:
    """The error for a header about the body that is sent twice: two readers could believe different ones. None if there is none."""
    names = Counter(name for name, _ in scope["headers"])
    for name in _ABOUT_BODY:
        if names[name] > 1:
            return InvalidRequest(f"The header {name.decode()} was sent {names[name]} times: send it once")
    return None


def _refusal(headers: dict[bytes, bytes], limit: BodyLimit) -> SophiaError | None:
    """Why the body will not be read, according to the headers. None if it may be read."""
    if _declared_length(headers) > limit.bytes:
        return limit.too_large()
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding in (b"", b"identity"):
        return None
    error = UnsupportedMediaType(
        "The body has a Content-Encoding, such as gzip, which Sophia does not support. Send it uncompressed"
    )
    error.headers = {"Accept-Encoding": "identity"}
    return error


async def _refuse(error: SophiaError, scope: Scope, receive: Receive, send: Send) -> None:
    await problem(scope, error)(scope, receive, send)


def _is_head_of_get(scope: Scope) -> bool:
    """Whether a HEAD request is handled like GET (RFC 9110, 9.3.2).

    Files have HEAD routes of their own, which do not open the file; an event stream has no end.
    """
    path = scope["path"]
    return scope["method"] == "HEAD" and not path.endswith(("/events", "/songs.zip")) and "/audio" not in path


def _with_policy(send: Send) -> Send:
    async def send_page(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"content-security-policy", _PAGES_POLICY)]
        await send(message)

    return send_page


class _Exchange:
    """One request and its answer. Limits the body in size and time.

    Once the body is refused, the application's own answer is dropped: it has seen an incomplete body.
    """

    def __init__(self, receive: Receive, send: Send, limit: BodyLimit) -> None:
        self._receive = receive
        self._send = send
        self._limit = limit
        self._bytes = 0
        self._is_complete = False
        self._deadline = asyncio.get_running_loop().time() + limit.timeout_s
        self.refusal: SophiaError | None = None
        """Why the body was refused."""
        self.answered = False

    async def receive(self) -> Message:
        message = await self._next()
        self._bytes += len(message.get("body", b""))
        self._is_complete = self._is_complete or not message.get("more_body", False)
        if self._bytes > self._limit.bytes:
            self.refusal = self._limit.too_large()
            raise self.refusal
        return message

    async def _next(self) -> Message:
        if self._is_complete:  # the next message is the client's disconnect, which may come at any time
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._receive()
        except TimeoutError:
            self.refusal = self._limit.too_slow()
            raise self.refusal from None

    async def send(self, message: Message) -> None:
        if self.answered or self.refusal is None:
            self.answered = True
            await self._send(message)


def _request_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _VALID_ID.fullmatch(given) else new_id()


def _declared_length(headers: dict[bytes, bytes]) -> int:
    length = headers.get(b"content-length", b"0")
    return int(length) if length.isdigit() else 0
