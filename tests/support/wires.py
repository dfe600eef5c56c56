"""A relay before a server that can go silent (it passes nothing on and closes nothing) or break connections."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url


class Wire:
    """A TCP relay. While it is cut, the kernels on both sides keep acknowledging, so no TCP timeout helps."""

    def __init__(self, *targets: str | tuple[str, int]) -> None:
        """A target is the path of a server's socket, or its address and port. With several, connections take turns."""
        self._targets = targets
        self.breaks: list[int] = []
        """For each of the next connections, after how many bytes of the server's it breaks."""
        self._flows = threading.Event()
        self._flows.set()
        self._door = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self._lost = 0
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def port(self) -> int:
        """Where clients connect to on 127.0.0.1."""
        return int(self._door.getsockname()[1])

    def cut(self) -> None:
        """Stops passing data on."""
        self._flows.clear()

    def mend(self, forget: bool = False) -> None:
        """Passes data on again. With `forget`, old connections stay silent, as when a firewall has lost them."""
        self._lost = len(self._ends) if forget else self._lost
        self._flows.set()

    def drop(self) -> None:
        """Breaks all connections that there are now."""
        for end in list(self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes all connections."""
        self._flows.set()
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        self.drop()
        for end in self._ends:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._door.accept()
            except OSError:
                return
            target = self._targets[len(self._ends) // 2 % len(self._targets)]
            server = socket.socket(socket.AF_UNIX if isinstance(target, str) else socket.AF_INET)
            server.connect(target)
            self._ends += [client, server]
            most = self.breaks.pop(0) if self.breaks else None
            for here, there, limit in ((client, server, None), (server, client, most)):
                threading.Thread(target=self._carry, args=(here, there, len(self._ends), limit), daemon=True).start()

    def _carry(self, here: socket.socket, there: socket.socket, number: int, most: int | None) -> None:
        carried = 0
        while True:
            try:
                data = here.recv(65536)
                self._flows.wait()
                carried += len(data)
                if most is not None and carried > most:
                    there.sendall(data[: len(data) - (carried - most)])
                    here.shutdown(socket.SHUT_RDWR)
                    there.shutdown(socket.SHUT_RDWR)
                    return
                if data and number > self._lost:
                    there.sendall(data)
                elif not data:
                    there.shutdown(socket.SHUT_RDWR)
                    return
            except OSError:
                return


@contextmanager
def wire(url: str) -> Iterator[tuple[Wire, str]]:
    """A relay to the PostgreSQL at an address with a socket folder as host, and the address through the relay."""
    address = make_url(url)
    folder = address.query["host"]
    made = Wire(f"{folder}/.s.PGSQL.{address.query.get('port', address.port or 5432)}")
    through = address.set(host="127.0.0.1", port=made.port, query={})
    try:
        yield made, through.render_as_string(hide_password=False)
    finally:
        made.close()


@contextmanager
def http_wire(*urls: str) -> Iterator[tuple[Wire, str]]:
    """A relay to the HTTP server at an address, or to several in turn, and its own address."""
    made = Wire(*(("127.0.0.1", urlsplit(url).port or 80) for url in urls))
    try:
        yield made, f"http://127.0.0.1:{made.port}"
    finally:
        made.close()
