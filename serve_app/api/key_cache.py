"""The API keys' hashes, cached in memory for a few seconds."""

import asyncio
import time
from typing import Final

from serve_app.api.threads import SingleFlight, Threads
from serve_app.api.watch import JobWatcher
from serve_app.store import Store
from serve_app.supervision import SupervisedTask

KEYS_FRESH_S: Final = 5.0
"""A new or revoked key takes effect within this time."""


class KeyCache:
    """Reads the keys from the store at most every KEYS_FRESH_S, and ends the waits of callers whose key was revoked."""

    def __init__(self, threads: Threads, store: Store, watcher: JobWatcher) -> None:
        self._store = store
        self._watcher = watcher
        self._read_once = SingleFlight(threads, self._read)
        self._health = SupervisedTask(store.supervisor, "watch of revoked keys", KEYS_FRESH_S)
        self._digests: dict[str, str] | None = None
        self._fresh_until = 0.0

    async def digests(self) -> dict[str, str]:
        """The SHA-256 of every key by owner, at most KEYS_FRESH_S old. Raises StoreUnavailable."""
        if self._digests is None or time.monotonic() > self._fresh_until:
            return await self._read_once.result()
        return self._digests

    async def watch_for_revoked(self) -> None:
        """End the waits of callers whose key was revoked: a waiting request checks its key only when it begins.

        Runs until it is cancelled.
        """
        while True:
            await asyncio.sleep(KEYS_FRESH_S)
            try:
                self._watcher.end_waits_except(await self.digests())
            except Exception as error:  # keep the waits until the keys can be read again
                self._health.record_failure(error)
            else:
                self._health.record_success()

    def _read(self) -> dict[str, str]:
        """Read the keys. Blocks.

        Sets the cache in the same thread, so that callers that arrive after the read ends never start another one.
        """
        started_at = time.monotonic()
        digests = self._store.keys.digests()
        self._fresh_until = started_at + KEYS_FRESH_S
        self._digests = digests
        return digests
