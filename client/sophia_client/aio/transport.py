"""Sends calls, repeats those that failed, and turns refusals into exceptions."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from sophia_client.aio.runtime import chunks_of, in_thread, pause
from sophia_client.calls import Call, checked_url, headers_with
from sophia_client.errors import ConnectionLost, SophiaError, error_of
from sophia_client.retries import Patience, Retries
from sophia_client.version import VERSION


class AsyncTransport:
    """The connections to one service."""

    def __init__(
        self, url: str, key: str | None, *, timeout_s: float, retries: Retries, tls: ssl.SSLContext | None
    ) -> None:
        self._url = checked_url(url)
        self._timeout_s = timeout_s
        self._retries = retries
        self._http = httpx.AsyncClient(
            base_url=self._url,
            headers=headers_with(key, f"sophia-client/{VERSION}"),
            timeout=timeout_s,
            verify=True if tls is None else tls,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def patience(self) -> Patience:
        """The time in which a call may be repeated from now on."""
        return Patience(self._retries)

    async def send(self, call: Call) -> httpx.Response:
        """The whole answer to a call. Raises ApiError and ConnectionLost."""
        patience = self.patience()
        while True:
            try:
                response = await self._http.send(await self._request(call))
            except httpx.TransportError as error:
                failure: SophiaError = self.lost(call, error)
            else:
                if response.is_success:
                    return response
                failure = error_of(response)
            await pause(patience.pause_s(failure))

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator[httpx.Response]:
        """The answer to a call, of which only the headers have been read. The call is not repeated.

        Raises ApiError, and ConnectionLost, also while the block reads the answer.
        """
        try:
            response = await self._http.send(await self._request(call), stream=True)
            try:
                if not response.is_success:
                    await response.aread()
                    raise error_of(response)
                yield response
            finally:
                await response.aclose()
        except httpx.TransportError as error:
            raise self.lost(call, error) from error

    def lost(self, call: Call, cause: Exception | None = None) -> ConnectionLost:
        """The error for a call whose answer did not arrive, or not to its end."""
        reason = str(cause) or type(cause).__name__ if cause else "the answer ended early"
        was_sent = not isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
        lost = ConnectionLost(f"{call} at {self._url} failed: {reason}", was_sent)
        lost.__cause__ = cause
        return lost

    async def _request(self, call: Call) -> httpx.Request:
        headers = dict(call.headers)
        content: bytes | AsyncIterator[bytes] | None
        if isinstance(call.body, Path):
            headers["Content-Length"] = str((await in_thread(call.body.stat)).st_size)
            content = chunks_of(call.body)
        else:
            content = call.body
        silence_s = call.silence_s or self._timeout_s
        timeout = httpx.Timeout(min(self._timeout_s, silence_s), read=silence_s)
        return self._http.build_request(
            call.method,
            call.path,
            json=call.json,
            params=call.params,
            headers=headers,
            content=content,
            timeout=timeout,
        )
