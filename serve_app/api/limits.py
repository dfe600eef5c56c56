"""Limits on a caller's concurrent requests, downloads and request rate, in one API process.

Each process counts for itself. With several API replicas, a caller therefore gets an equal part of its limit in each, rounded up.
"""

import asyncio
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from serve_app.config import ApiArgs, InputArgs
from serve_app.errors import TooManyRequests
from serve_app.plurals import counted

_MAX_BUCKETS: Final = 10_000
"""Callers whose token buckets are kept. A bound is needed because a client can use many addresses."""

LONG_REQUESTS: Final = 0.7
"""Fraction of `api.max_ongoing` for requests that wait for a song or follow a job; the rest serves quick requests."""

NON_PROBES: Final = 0.9
"""Fraction of `api.max_ongoing` for everything but probes, so that probes are always answered."""

_INLINE_BYTES: Final = 100_000_000
_INLINE_BYTES_PER_OWNER: Final = 50_000_000
"""The most audio inside JSON answers at once, as base64 text. While an answer is made, its audio is in memory about three times."""

_REFUSALS_PER_S: Final = 10
_REFUSAL_BURST: Final = 100


class SharedSlots:
    """A fixed number of concurrent requests, shared by all callers."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._all_free = asyncio.Event()
        self._all_free.set()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold a slot for the duration of the context. Raises TooManyRequests if none is free."""
        if self._used >= self._size:
            raise TooManyRequests(
                f"This API process already serves {counted(self._size, 'request')} of this kind, its maximum "
                "(see api.max_ongoing). Try again later"
            )
        self._used += 1
        self._all_free.clear()
        try:
            yield
        finally:
            self._used -= 1
            if not self._used:
                self._all_free.set()

    async def all_free(self) -> None:
        """Wait until no slot is held."""
        await self._all_free.wait()


class OwnerSlots:
    """A fixed number of concurrent requests for each owner; every request also holds one of the shared slots."""

    def __init__(self, what: str, setting: str, per_owner: int, shared: SharedSlots) -> None:
        self._what = what
        self._setting = setting
        self._per_owner = per_owner
        self._shared = shared
        self._used: Counter[str] = Counter()

    @contextmanager
    def hold(self, owner: str) -> Iterator[None]:
        """Hold a slot for the duration of the context. Raises TooManyRequests if none is free."""
        if self._used[owner] >= self._per_owner:
            raise TooManyRequests(f"You already have {self._per_owner} {self._what}, the maximum ({self._setting})")
        with self._shared.hold():
            self._used[owner] += 1
            try:
                yield
            finally:
                self._used[owner] -= 1
                if not self._used[owner]:
                    del self._used[owner]


class _ByteLimit(NamedTuple):
    """A limit on unread bytes, with the words for its error text."""

    size: int
    setting: str
    holder: str
    """Who holds the bytes, with its verb: `you have`."""


class Downloads:
    """The bytes of files that are being sent to clients.

    Serve accepts a whole response as fast as the API produces it, however slowly the client reads, and holds the rest in Ray's
    object store, which spills to disk. Serve can neither slow the API down nor drop a client that stopped reading, so the bytes
    are counted here.
    """

    def __init__(self, per_owner: int, overall: int) -> None:
        self._per_owner = _ByteLimit(per_owner, "api.download_bytes_per_key", "you have")
        self._overall = _ByteLimit(overall, "api.download_bytes", "this API process has")
        self._bytes: Counter[str] = Counter()

    @contextmanager
    def hold(self, owner: str, size: int, path: str) -> Iterator[None]:
        """Count `size` bytes for the duration of the context. Raises TooManyRequests, which names `path` for a later try.

        A caller without any download always has room, whatever the size.
        """
        _check_room(self._per_owner, self._bytes[owner], size, path)
        _check_room(self._overall, self._bytes.total(), size, path)
        self._bytes[owner] += size
        try:
            yield
        finally:
            self._bytes[owner] -= size
            if not self._bytes[owner]:
                del self._bytes[owner]


class RateLimit:
    """A token bucket for each caller: `per_s` requests a second on average, and up to `burst` at once."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """By caller, its tokens and when they were counted; the most recent caller is last."""

    def take(self, caller: str) -> float:
        """Take a token and return 0, or return the seconds until one is available."""
        now = time.monotonic()
        tokens, counted_at = self._buckets.pop(caller, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - counted_at) * self._per_s)
        wait_s = 0.0 if tokens >= 1 else (1 - tokens) / self._per_s
        self._buckets[caller] = (tokens if wait_s else tokens - 1, now)
        if len(self._buckets) > _MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return wait_s


class Limits:
    """All limits of one API process."""

    def __init__(self, args: ApiArgs, inputs: InputArgs) -> None:
        def per_replica(limit: int) -> int:
            return math.ceil(limit / args.replicas)

        long_requests = SharedSlots(int(args.max_ongoing * LONG_REQUESTS))
        self.waits = OwnerSlots("waiting requests", "api.waits_per_key", per_replica(args.waits_per_key), long_requests)
        self.streams = OwnerSlots(
            "event streams", "api.streams_per_key", per_replica(args.streams_per_key), long_requests
        )
        self.uploads = OwnerSlots(
            "uploads", "inputs.uploads_per_key", per_replica(inputs.uploads_per_key), long_requests
        )
        self.downloads = Downloads(args.download_bytes_per_key, args.download_bytes)
        self.inline_audio = Downloads(_INLINE_BYTES_PER_OWNER, _INLINE_BYTES)
        self._requests = RateLimit(args.requests_per_s / args.replicas, per_replica(args.request_burst))
        self._refusals = RateLimit(_REFUSALS_PER_S, _REFUSAL_BURST)
        self._per_s = args.requests_per_s

    def count_request(self, owner: str) -> None:
        """Count a request of an owner. Raises TooManyRequests."""
        wait_s = self._requests.take(owner)
        if wait_s:
            raise _too_fast(
                f"You send more than {self._per_s:g} requests per second, the maximum (api.requests_per_s)", wait_s
            )

    def count_refusal(self, address: str) -> None:
        """Count a request without a valid key from an address. Raises TooManyRequests."""
        wait_s = self._refusals.take(address)
        if wait_s:
            raise _too_fast("Your address has sent too many requests without a valid API key", wait_s)


def _check_room(limit: _ByteLimit, used: int, size: int, path: str) -> None:
    if used and used + size > limit.size:
        raise TooManyRequests(
            f"The file of {size} bytes cannot be sent now: {limit.holder} {used} unread bytes of downloads, and the maximum is "
            f"{limit.size} ({limit.setting}). Read or close a download, then GET {path}"
        )


def _too_fast(message: str, wait_s: float) -> TooManyRequests:
    error = TooManyRequests(message)
    error.retry_after_s = math.ceil(wait_s)
    return error
