"""Counts the attempts in progress by receiver and owner, so that none of them occupies every sender."""

import threading
from collections import Counter
from ipaddress import ip_address, ip_network
from typing import Final

from serve_app.store.webhooks import Delivery, receiver_of

_IPV6_NETWORK_BITS: Final = 64
"""The owner of an IPv6 network has every address that shares these leading bits."""


class Receivers:
    """The attempts in progress in one process. Thread-safe.

    A receiver is a host name on any port, and also the address that the name resolves to, since a client can give one machine
    many names and ports. At most `per_receiver` attempts at once use one name or address, and at most `per_owner` serve one
    owner. Without API keys there are no owners and no limit by owner.
    """

    def __init__(self, per_receiver: int, per_owner: int) -> None:
        self._per_receiver = per_receiver
        self._per_owner = per_owner
        self._receivers: dict[str, set[str]] = {}
        """By delivery, the receivers that its attempt uses."""
        self._owners: dict[str, str] = {}
        """By delivery, its owner."""
        self._last_owner = ""
        self._lock = threading.Lock()

    def begin(self, delivery: Delivery) -> None:
        """Count an attempt. Its address is unknown until `admit`, unless an earlier attempt was postponed because of it."""
        with self._lock:
            self._receivers[delivery.id] = {delivery.receiver, receiver_of(delivery.url)}
            self._owners[delivery.id] = delivery.owner
            self._last_owner = delivery.owner

    def admit(self, delivery: Delivery, address: str) -> bool:
        """Whether the attempt may use `address`. If so, it counts for that address until `end`."""
        receiver = receiver_at(address)
        with self._lock:
            own = self._receivers[delivery.id]
            others = sum(receiver in used for used in self._receivers.values()) - (receiver in own)
            if others >= self._per_receiver:
                return False
            own.add(receiver)
            return True

    def end(self, delivery: Delivery) -> None:
        """Stop counting an attempt."""
        with self._lock:
            del self._receivers[delivery.id]
            del self._owners[delivery.id]

    def busy(self) -> list[str]:
        """The receivers that must get no further attempt now."""
        with self._lock:
            attempts = Counter(receiver for used in self._receivers.values() for receiver in used)
        return [receiver for receiver, count in attempts.items() if count >= self._per_receiver]

    def owners(self) -> list[str]:
        """The owners who have an attempt in progress, and the owner of the last attempt. Other owners come first."""
        with self._lock:
            return [owner for owner in {*self._owners.values(), self._last_owner} if owner]

    def busy_owners(self) -> list[str]:
        """The owners who must get no further attempt now."""
        with self._lock:
            attempts = Counter(self._owners.values())
        return [owner for owner, count in attempts.items() if owner and count >= self._per_owner]


def receiver_at(address: str) -> str:
    """The receiver at an IP address: the address itself for IPv4, its network for IPv6."""
    found = ip_address(address)
    if found.version == 4:
        return str(found)
    return str(found.ipv4_mapped or ip_network((int(found), _IPV6_NETWORK_BITS), strict=False))
