"""Around every request: its id, and the limits of its size and of how many there are.

Plain ASGI, so that /ping stays cheap. Serve logs the requests.
"""

import asyncio
import re
from contextlib import suppress
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.limits import WORKING, Overall
from serve_app.api.problems import problem
from serve_app.config import ApiArgs
from serve_app.errors import BodyTooLarge, BodyTooSlow, SophiaError, TooManyRequests, UnsupportedMediaType
from serve_app.jobs import new_id

_PROBES: Final = ("/ping", "/healthz", "/readyz")
PAGES_FILES: Final = "/docs-files"
_PAGES: Final = ("/docs", "/redoc")
_PAGES_POLICY: Final = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data:; worker-src blob:"
)
"""Nothing from elsewhere; FastAPI's pages have their few lines of script and style inside."""

_GIVEN_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class RequestMiddleware:
    """Name the request as Serve's log and `X-Request-ID` do, and refuse one too many and a body over the limit."""

    def __init__(self, app: ASGIApp, args: ApiArgs) -> None:
        self._app = app
        self._args = args
        self._places = Overall(int(args.max_ongoing * WORKING))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        scope["request_id"] = _request_id(headers)
        if scope["path"] in _PROBES:
            await self._take(scope, headers, receive, send)
            return
        try:
            with self._places.taken():
                await self._take(scope, headers, receive, send)
        except TooManyRequests as error:
            await _refuse(error, scope, receive, send)

    async def _take(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        if _declared_length(headers) > self._args.max_body_bytes:
            await _refuse(_too_large(self._args), scope, receive, send)
            return
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in (b"", b"identity"):
            detail = "Send the body as it is: a Content-Encoding such as gzip is not read here"
            answer = problem(scope["request_id"], UnsupportedMediaType, detail, headers={"Accept-Encoding": "identity"})
            await answer(scope, receive, send)
            return
        if scope["method"] == "HEAD" and not scope["path"].endswith("/events") and "/audio" not in scope["path"]:
            # HEAD wherever there is GET (RFC 9110, 9.3.2); the server sends no body. Files have routes of their own for it.
            scope = {**scope, "method": "GET"}
        if scope["path"] in _PAGES:
            send = _with_policy(send)
        exchange = _Exchange(receive, send, self._args)
        with suppress(BodyTooLarge, BodyTooSlow):
            await self._app(scope, exchange.receive, exchange.send)
        if exchange.refusal is not None and not exchange.answered:
            await _refuse(exchange.refusal, scope, receive, send)


async def _refuse(error: SophiaError, scope: Scope, receive: Receive, send: Send) -> None:
    await problem(scope["request_id"], type(error), error.message)(scope, receive, send)


def _with_policy(send: Send) -> Send:
    async def send_page(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"content-security-policy", _PAGES_POLICY)]
        await send(message)

    return send_page


class _Exchange:
    """Bounds the body that is read in size and time, and holds back what the app answers to one that it did not get whole."""

    def __init__(self, receive: Receive, send: Send, args: ApiArgs) -> None:
        self._receive = receive
        self._send = send
        self._args = args
        self._read = 0
        self._is_whole = False
        self._deadline = asyncio.get_running_loop().time() + args.body_timeout_s
        self.refusal: SophiaError | None = None
        """What is wrong with the body."""
        self.answered = False

    async def receive(self) -> Message:
        message = await self._next()
        self._read += len(message.get("body", b""))
        self._is_whole = self._is_whole or not message.get("more_body", False)
        if self._read > self._args.max_body_bytes:
            self.refusal = _too_large(self._args)
            raise self.refusal
        return message

    async def _next(self) -> Message:
        if self._is_whole:  # what comes now is that the client has left, whenever it does
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._receive()
        except TimeoutError:
            self.refusal = BodyTooSlow(
                f"The body did not come within {self._args.body_timeout_s:g} s (api.body_timeout_s)"
            )
            raise self.refusal from None

    async def send(self, message: Message) -> None:
        if self.answered or self.refusal is None:
            self.answered = True
            await self._send(message)


def _too_large(args: ApiArgs) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than {args.max_body_bytes} bytes (api.max_body_bytes)")


def _request_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _GIVEN_ID.fullmatch(given) else new_id()


def _declared_length(headers: dict[bytes, bytes]) -> int:
    length = headers.get(b"content-length", b"0")
    return int(length) if length.isdigit() else 0
