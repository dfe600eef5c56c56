"""The connection to a receiver: only to checked addresses, and only until a deadline.

The sender resolves the host name, checks every address and connects to one of those, so that DNS rebinding does not work.
"""

import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

import httpcore

from serve_app.background.webhook_sender.addresses import Resolve, is_public_text
from serve_app.background.webhook_sender.receivers import receiver_at

CONNECT_S: Final = 5.0
"""Seconds for one TCP connection, and again for its TLS handshake."""

_CHUNK_BYTES: Final = 16_384
"""Bytes of one write. The deadline is checked between two writes."""


class ReceiverBusy(Exception):
    """The address of the host name already has the most attempts at once that `webhooks.per_receiver` allows."""

    def __init__(self, receiver: str) -> None:
        super().__init__(receiver)
        self.receiver = receiver


class CheckedNetwork(httpcore.SyncBackend):
    """Connects to checked addresses only, until `deadline` (seconds on the monotonic clock).

    httpcore documents a network backend as the place for one's own DNS. The URL keeps the host name, so httpcore still checks the
    certificate against it. `admit` returns whether another attempt may be made to an address.
    """

    def __init__(self, resolve: Resolve, admit: Callable[[str], bool], allow_private: bool, deadline: float) -> None:
        self._resolve = resolve
        self._admit = admit
        self._allow_private = allow_private
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address that answers. Raises ReceiverBusy when none does and one was not admitted."""
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        busy: ReceiverBusy | None = None
        for address in self._addresses(host, port):
            if not self._admit(address):
                busy = ReceiverBusy(receiver_at(address))
                continue
            try:
                seconds = min(CONNECT_S, _seconds_left(self._deadline))
                stream = super().connect_tcp(address, port, seconds, local_address, socket_options)
                return _DeadlineStream(stream, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise busy or failure

    def _addresses(self, host: str, port: int) -> Sequence[str]:
        """The host's addresses. Raises ConnectError when there are none, or when one is internal and that is not allowed."""
        try:
            found = self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} has no address") from error
        if not self._allow_private and not all(is_public_text(address) for address in found):
            raise httpcore.ConnectError(f"{host} is not a public address")
        return found


class _DeadlineStream(httpcore.NetworkStream):
    """A connection whose reads and writes share one deadline. A receiver that sends a byte now and then gets no more time."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _seconds_left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _CHUNK_BYTES):
            self._stream.write(buffer[start : start + _CHUNK_BYTES], _seconds_left(self._deadline))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        seconds = min(CONNECT_S, _seconds_left(self._deadline))
        return _DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, seconds), self._deadline)

    def close(self) -> None:
        with suppress(OSError):
            self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _seconds_left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the deadline of the attempt has passed")
    return left
