"""The address that Serve will listen on: which it is, whether it is free, and whether another launcher has claimed it.

Serve binds its port with SO_REUSEPORT, so it would share the port with a program that already listens there, and each would get
half of the requests. Switching SO_REUSEPORT off does not help: Serve then sets no SO_REUSEADDR either, and cannot bind for a
minute after the last connection. So the launcher checks the port before it starts Serve.
"""

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from serve_app.errors import ConfigurationError

DEFAULT_HOST: Final = "0.0.0.0"  # noqa: S104 - Serve's own default, which is only checked here
DEFAULT_PORT: Final = 8000
RELEASE_S: Final = 5.0
"""How long to wait for a port that a Sophia which has just ended may still hold, in seconds."""

_ANY_HOST: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not bound
_REMEDY: Final = "Stop it, or set http_options: port in {config}."


class Address(NamedTuple):
    """A host, as `http_options: host` names it, and a TCP port."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """The base URL for a client on this machine, without a trailing slash."""
        host = _ANY_HOST.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def address_of(document: Any) -> Address:
    """The address in a parsed Serve config, with Serve's defaults. Raises ConfigurationError."""
    options = (document or {}).get("http_options") or {}
    if not isinstance(options, Mapping):
        raise ConfigurationError("http_options must be a mapping, such as {host: 127.0.0.1, port: 8000}.")
    port = options.get("port", DEFAULT_PORT)
    if not isinstance(port, int) or not 1 <= port <= 65_535:
        raise ConfigurationError(f"http_options: port must be a whole number from 1 to 65535, got {port!r}.")
    return Address(str(options.get("host", DEFAULT_HOST)), port)


def claim(address: Address, config: Path) -> socket.socket:
    """Claim the address for this launcher and return the claim, which holds while the socket is open.

    Raises ConfigurationError when another launcher or another program uses the address.
    """
    remedy = _REMEDY.format(config=config)
    claimed = _claimed(f"{address.host}:{address.port}")
    if claimed is None:
        raise ConfigurationError(f"Another 'make serve' uses port {address.port} of {address.host}. {remedy}")
    if not is_free(*address):
        raise ConfigurationError(
            f"Another program uses port {address.port} of {address.host}; "
            f"'ss -ltnp sport = :{address.port}' shows which. {remedy}"
        )
    return claimed


def claim_folder(data_dir: Path) -> socket.socket | None:
    """Claim the data folder, which must exist, as `claim` does. None if another launcher uses it, which is allowed."""
    found = data_dir.stat()
    return _claimed(f"data {found.st_dev}:{found.st_ino}")  # not the path: a name has at most 107 bytes


def _claimed(name: str) -> socket.socket | None:
    """The claim on a name, or None when another launcher holds it.

    It is an abstract Unix socket (unix(7)): the kernel removes it with its last process, and it belongs to the network namespace,
    as the port does.
    """
    claimed = socket.socket(socket.AF_UNIX)
    try:
        claimed.bind(f"\0sophia {name}")
    except OSError:
        claimed.close()
        return None
    return claimed


def is_free(host: str, port: int) -> bool:
    """Whether no program listens on the port; waits up to RELEASE_S for it. Raises ConfigurationError for an unknown host."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigurationError(f"http_options: host {host!r} has no address: {error.strerror}.") from error
    deadline = time.monotonic() + RELEASE_S
    while not _can_bind(family, kind, protocol, address):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _can_bind(family: int, kind: int, protocol: int, address: Any) -> bool:
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT do not count
        try:
            probe.bind(address)
        except OSError:
            return False
    return True
