"""Whom webhooks are being sent to and for whom, so that no receiver and no owner takes every sender."""

import threading
from collections import Counter
from ipaddress import ip_address, ip_network
from typing import Final

from serve_app.store.webhooks import Delivery, receiver_of

_SITE: Final = 64
"""Bits of an IPv6 address that name a network: its owner has all the addresses in it."""


class Receivers:
    """The attempts under way in one process. Safe to use from several threads.

    A receiver is a host name, whatever the port, and the address that the name has now: a client makes as many names and ports for
    one machine as it likes. At most `per_receiver` attempts go to one of either, and at most `per_owner` are made for one owner;
    where nobody needs an API key there are no owners, and no limit for them.
    """

    def __init__(self, per_receiver: int, per_owner: int) -> None:
        self._per_receiver = per_receiver
        self._per_owner = per_owner
        self._receivers: dict[str, set[str]] = {}
        self._owners: dict[str, str] = {}
        self._last_owner = ""
        self._lock = threading.Lock()

    def begin(self, delivery: Delivery) -> None:
        """An attempt begins. Its address is not known yet, unless an earlier attempt was put off for it."""
        with self._lock:
            self._receivers[delivery.id] = {delivery.receiver, receiver_of(delivery.url)}
            self._owners[delivery.id] = delivery.owner
            self._last_owner = delivery.owner

    def admit(self, delivery: Delivery, address: str) -> bool:
        """Whether the attempt may be made to `address`; if so, it counts there until it has ended."""
        receiver = receiver_at(address)
        with self._lock:
            own = self._receivers[delivery.id]
            others = sum(receiver in theirs for theirs in self._receivers.values()) - (receiver in own)
            if others >= self._per_receiver:
                return False
            own.add(receiver)
            return True

    def end(self, delivery: Delivery) -> None:
        """The attempt has ended."""
        with self._lock:
            del self._receivers[delivery.id]
            del self._owners[delivery.id]

    def busy(self) -> list[str]:
        """The receivers that get no further attempt now."""
        with self._lock:
            attempts = Counter(receiver for theirs in self._receivers.values() for receiver in theirs)
        return [receiver for receiver, count in attempts.items() if count >= self._per_receiver]

    def owners(self) -> list[str]:
        """The owners for whom an attempt is under way, and the one who had the last turn: others come first."""
        with self._lock:
            return [owner for owner in {*self._owners.values(), self._last_owner} if owner]

    def busy_owners(self) -> list[str]:
        """The owners for whom no further attempt is made now."""
        with self._lock:
            attempts = Counter(self._owners.values())
        return [owner for owner, count in attempts.items() if owner and count >= self._per_owner]


def receiver_at(address: str) -> str:
    """The receiver at an IP address: an IPv4 address itself, and the network of an IPv6 address."""
    found = ip_address(address)
    if found.version == 4:
        return str(found)
    return str(found.ipv4_mapped or ip_network((int(found), _SITE), strict=False))
