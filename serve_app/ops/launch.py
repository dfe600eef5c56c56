"""`make serve`: `serve run` on a port that is free. `python -m serve_app.ops.launch CONFIG`

Serve shares its port with whoever listens there already (SO_REUSEPORT), and each would get half of the requests. Turned off, it
could not bind for a minute after the last connection, as Serve sets SO_REUSEADDR together with it. So the port is looked at here,
before Serve takes it.
"""

import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml

DEFAULT_HOST: Final = "0.0.0.0"  # noqa: S104 - Serve's own default, of which we only ask whether it is free
DEFAULT_PORT: Final = 8000
PATIENCE_S: Final = 5.0
"""A Sophia that has just been ended may hold the port for so long."""

_REMEDY: Final = "End it, or set http_options: port in serve_config.yaml."


def main(words: list[str]) -> NoReturn:
    """Become `serve run CONFIG`; exits with 1 and one sentence when its port is taken."""
    config = Path(words[0])
    host, port = address_of(yaml.safe_load(config.read_text()))
    mark = _starting_alone(host, port)
    if mark is None:
        sys.exit(f"Another 'make serve' runs or starts on port {port} of {host}. {_REMEDY}")
    if not is_free(host, port):
        sys.exit(f"Port {port} of {host} is in use by another program; 'ss -ltnp sport = :{port}' names it. {_REMEDY}")
    mark.set_inheritable(True)  # `serve run` keeps it until it ends
    serve = str(Path(sys.executable).with_name("serve"))
    os.execv(serve, [serve, "run", str(config)])  # noqa: S606 - our own interpreter's command


def address_of(document: Any) -> tuple[str, int]:
    """Where a Serve configuration says that Serve listens."""
    options = (document or {}).get("http_options") or {}
    return str(options.get("host", DEFAULT_HOST)), int(options.get("port", DEFAULT_PORT))


def _starting_alone(host: str, port: int) -> socket.socket | None:
    """What says, while it is open, that we start or run there; None when another one does.

    An abstract Unix socket (unix(7)) is gone with its process, and is seen where the port is: in this network namespace.
    """
    mark = socket.socket(socket.AF_UNIX)
    try:
        mark.bind(f"\0sophia {host}:{port}")
    except OSError:
        mark.close()
        return None
    return mark


def is_free(host: str, port: int) -> bool:
    """Whether nobody listens there, looked at until PATIENCE_S have passed."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with socket.socket(family, kind, protocol) as asked:
            asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past connections hold nobody up
            try:
                asked.bind(address)
            except OSError:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.2)
            else:
                return True


if __name__ == "__main__":
    main(sys.argv[1:])
