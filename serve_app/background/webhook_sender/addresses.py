"""Which URLs and IP addresses a webhook may be sent to."""

import re
import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

import httpx

from serve_app.errors import InvalidRequest

Resolve = Callable[[str, int], Sequence[str]]
"""Returns the IP addresses of a host name, for connections to a port. Raises OSError when it has none."""

_LABEL: Final = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME: Final = re.compile(rf"(?=.{{1,254}}$)({_LABEL}\.)*(?![0-9]+\.?$|0[xX]){_LABEL}\.?")
"""A host name. Its last label must not be a number, as in an unusual spelling of an IP address (0x7f.1, 2130706433, 0177.0.0.1)."""

_UNICAST: Final = IPv6Network("2000::/3")
"""The public unicast addresses of IPv6. Mapped IPv4 and NAT64 addresses lie outside."""

_SPECIAL: Final = tuple(
    ip_network(block)
    for block in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved, broadcast
        "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
    )
)  # fmt: skip
"""Blocks of IANA's special-purpose registries (RFC 6890). Python's `is_global` differs between versions of Python."""


def check_url(url: str, allow_private: bool, field: str = "webhook_url") -> None:
    """Raise InvalidRequest, which names `field`, for a URL that Sophia will never connect to.

    Checks the text only. The sender resolves a host name for each attempt, and checks its addresses then.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidRequest(f"{field}: {error}") from error
    if parsed.scheme not in ("http", "https"):
        raise InvalidRequest(f"{field}: must begin with https:// or http://")
    if parsed.userinfo:
        raise InvalidRequest(f"{field}: must not contain a user name or password")
    if parsed.port is not None and not 0 < parsed.port < 65536:
        raise InvalidRequest(f"{field}: the port must be between 1 and 65535, got {parsed.port}")
    _check_host(parsed.raw_host.decode("ascii"), allow_private, field)


def is_loopback_name(host: str) -> bool:
    """Whether a host name means this machine everywhere (RFC 6761, 6.3)."""
    return f".{host.rstrip('.').lower()}".endswith(".localhost")


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an IP address belongs to one machine on the public internet."""
    if address.version == 6 and address not in _UNICAST:
        return False
    return not any(address in block for block in _SPECIAL)


def is_public_text(text: str) -> bool:
    """Whether a text is the address of one machine on the public internet."""
    address = _parse(text)
    return address is not None and is_public(address)


def resolve(host: str, port: int) -> list[str]:
    """The IP addresses that this machine's resolver returns for a host."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _check_host(host: str, allow_private: bool, field: str) -> None:
    address = _parse(host)
    if address is None and not _NAME.fullmatch(host):
        raise InvalidRequest(
            f"{field}: {host!r} is neither a host name nor an IP address in its usual notation, such as 192.0.2.1"
        )
    internal = is_loopback_name(host) if address is None else not is_public(address)
    if internal and not allow_private:
        raise InvalidRequest(f"{field}: {host} is not a public address")


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    if "%" in text:  # a zone names a network interface of this machine
        return None
    try:
        return ip_address(text)
    except ValueError:
        return None
