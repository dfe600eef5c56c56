"""Tells API processes that the service is about to stop, so that they answer the callers who wait for a song.

Ray Serve ends its HTTP proxies first when it shuts down, which would cut those callers off without an answer.
"""

import secrets
import socket
import threading
import time
from contextlib import suppress
from typing import Final

ANSWERED_S: Final = 5.0
"""The longest wait for API processes to answer their callers, in seconds."""


class StopNotice:
    """A Unix socket to which every API process of this host connects. Its end is the notice."""

    def __init__(self) -> None:
        self.name = f"sophia-{secrets.token_hex(8)}"
        """Its name in the abstract namespace (unix(7)), for the variable `LAUNCHER`."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"\0{self.name}")
        self._listener.listen()
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, name="stop notice", daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                self._connections.append(self._listener.accept()[0])

    @property
    def is_connected(self) -> bool:
        """Whether an API process has connected."""
        return bool(self._connections)

    def announce(self) -> None:
        """Give notice and wait until the API processes have answered their callers, at most ANSWERED_S."""
        give_up_at = time.monotonic() + ANSWERED_S
        for connection in self._connections:
            with suppress(OSError):  # the process has ended
                connection.shutdown(socket.SHUT_WR)
        for connection in self._connections:
            connection.settimeout(max(give_up_at - time.monotonic(), 0.01))
            with suppress(OSError):
                connection.recv(1)  # the process closes the connection when it has answered

    def close(self) -> None:
        """Close the sockets."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._listener.close()
        for connection in self._connections:
            connection.close()
