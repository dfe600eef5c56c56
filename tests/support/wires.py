"""A relay between Sophia and PostgreSQL that can go silent: it passes nothing on and closes nothing."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy.engine import make_url


class Wire:
    """A TCP relay. While it is cut, the kernels on both sides keep acknowledging, so no TCP timeout helps."""

    def __init__(self, target: str) -> None:
        """`target` is the path of a PostgreSQL server's socket."""
        self._target = target
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

    def close(self) -> None:
        """Closes all connections."""
        self._flows.set()
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._door.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target)
            self._ends += [client, server]
            for here, there in ((client, server), (server, client)):
                threading.Thread(target=self._carry, args=(here, there, len(self._ends)), daemon=True).start()

    def _carry(self, here: socket.socket, there: socket.socket, number: int) -> None:
        while True:
            try:
                data = here.recv(65536)
                self._flows.wait()
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
