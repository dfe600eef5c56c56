"""What one caller may have under way, and how often it may ask, in one API process.

Every limit is counted in the process, so a caller of an API with several replicas has an even part of it in each, rounded up.
"""

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from serve_app.config import ApiArgs
from serve_app.errors import TooManyRequests

_REMEMBERED: Final = 10_000
"""Callers whose last requests are remembered: the memory of it must not grow with made-up addresses."""

LASTING: Final = 0.7
"""The part of `api.max_ongoing` that may wait or follow: the rest is for what is answered at once."""

WORKING: Final = 0.9
"""The part of `api.max_ongoing` that probes leave to all others."""


class Places:
    """Places for what lasts: so many for each owner, and so many in all."""

    def __init__(self, what: str, setting: str, per_owner: int, overall: "Overall") -> None:
        self._what = what
        self._setting = setting
        self._per_owner = per_owner
        self._overall = overall
        self._taken: Counter[str] = Counter()

    @contextmanager
    def taken(self, owner: str) -> Iterator[None]:
        """Have a place. Raises TooManyRequests."""
        if self._taken[owner] >= self._per_owner:
            raise TooManyRequests(
                f"You have {self._per_owner} {self._what} already, as many as one caller may ({self._setting})"
            )
        with self._overall.taken():
            self._taken[owner] += 1
            try:
                yield
            finally:
                self._taken[owner] -= 1
                if not self._taken[owner]:
                    del self._taken[owner]


class Overall:
    """Places that all callers share."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._count = 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Have a place. Raises TooManyRequests."""
        if self._count >= self._size:
            raise TooManyRequests(
                f"This API process has {self._size} such requests under way, as many as it takes (api.max_ongoing)"
            )
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


class Downloads:
    """Bytes of files on their way to their readers.

    Serve takes a whole answer from us as fast as we give it, however slowly its reader reads: what is between lies in Ray's object
    store, which spills to disk. Serve has no way to hold that back, nor to end an answer that nobody reads; so it is counted.
    """

    def __init__(self, per_owner: int, overall: int) -> None:
        self._per_owner = per_owner
        self._overall = overall
        self._bytes: Counter[str] = Counter()

    @contextmanager
    def under_way(self, owner: str, size: int, path: str) -> Iterator[None]:
        """Have room for so many bytes until the reader has them. Raises TooManyRequests, which tells the `path`."""
        _check_room(self._bytes[owner], size, self._per_owner, path, "you have", "api.download_bytes_per_key")
        _check_room(self._bytes.total(), size, self._overall, path, "this API process has", "api.download_bytes")
        self._bytes[owner] += size
        try:
            yield
        finally:
            self._bytes[owner] -= size
            if not self._bytes[owner]:
                del self._bytes[owner]


class Rate:
    """So many requests a second from each caller, and a burst of more after a rest (a token bucket)."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """By caller: what was left, and when; the callers who asked last are last."""

    def spend(self, caller: str) -> float:
        """Count a request; 0, or after how many seconds one would be taken."""
        now = time.monotonic()
        left, at = self._buckets.pop(caller, (float(self._burst), now))
        left = min(self._burst, left + (now - at) * self._per_s)
        wait_s = 0.0 if left >= 1 else (1 - left) / self._per_s
        self._buckets[caller] = (left if wait_s else left - 1, now)
        if len(self._buckets) > _REMEMBERED:
            self._buckets.popitem(last=False)
        return wait_s


class Limits:
    """The limits of one API process."""

    def __init__(self, args: ApiArgs) -> None:
        def share(limit: int) -> int:
            return math.ceil(limit / args.replicas)

        lasting = Overall(int(args.max_ongoing * LASTING))
        self.waits = Places("requests that wait", "api.waits_per_key", share(args.waits_per_key), lasting)
        self.streams = Places("event streams", "api.streams_per_key", share(args.streams_per_key), lasting)
        self.downloads = Downloads(args.download_bytes_per_key, args.download_bytes)
        self._requests = Rate(args.requests_per_s / args.replicas, share(args.request_burst))
        self._refusals = Rate(10, 100)
        self._per_s = args.requests_per_s

    def ask(self, owner: str) -> None:
        """Count a request of an owner. Raises TooManyRequests."""
        wait_s = self._requests.spend(owner)
        if wait_s:
            raise _too_fast(f"You ask more often than {self._per_s:g} times a second (api.requests_per_s)", wait_s)

    def refuse(self, address: str) -> None:
        """Count a request without a valid key from an address. Raises TooManyRequests."""
        wait_s = self._refusals.spend(address)
        if wait_s:
            raise _too_fast("Too many requests without a valid API key came from your address", wait_s)


def _check_room(taken: int, size: int, most: int, path: str, who: str, setting: str) -> None:
    if taken and taken + size > most:
        raise TooManyRequests(
            f"The file of {size} bytes is ready, GET {path} later: {who} {taken} bytes under way that are not read, "
            f"and may have {most} ({setting})"
        )


def _too_fast(message: str, wait_s: float) -> TooManyRequests:
    error = TooManyRequests(message)
    error.retry_after_s = math.ceil(wait_s)
    return error
