"""Waiting for a job to change: one query for all who wait, in every API process."""

import asyncio
from contextlib import suppress
from typing import Final

from serve_app.errors import StoreUnavailable
from serve_app.jobs import Job
from serve_app.store import Store

LOOK_S: Final = 0.25
"""An end is seen at once; progress, of which PostgreSQL sends no word, within this time."""


class JobWatcher:
    """Wakes the requests that wait for a job. Belongs to one event loop."""

    def __init__(self, store: Store):
        self._store = store
        self._waiting: dict[str, list[tuple[int, asyncio.Future[Job | None]]]] = {}
        self._somebody = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def changed(self, job: str, version: int, timeout: float | None = None) -> Job | None:
        """The job as soon as its version is not `version`; None when it is gone. Raises TimeoutError."""
        self._task = self._task or asyncio.create_task(self._watch())
        future: asyncio.Future[Job | None] = asyncio.get_running_loop().create_future()
        waiter = (version, future)
        self._waiting.setdefault(job, []).append(waiter)
        self._somebody.set()
        self._store.changes.notify("ended")  # look at once: it may have changed since the caller did
        try:
            return await asyncio.wait_for(future, timeout)
        finally:
            self._leave(job, waiter)

    async def finished(self, job: Job, timeout: float) -> Job | None:
        """The job once it has ended, or as it is after `timeout` seconds; None when it is gone."""
        deadline = asyncio.get_running_loop().time() + timeout
        latest: Job | None = job
        with suppress(TimeoutError):
            while latest is not None and not latest.status.final:
                latest = await self.changed(latest.id, latest.version, deadline - asyncio.get_running_loop().time())
        return latest

    async def close(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def _leave(self, job: str, waiter: tuple[int, asyncio.Future[Job | None]]) -> None:
        self._waiting[job].remove(waiter)
        if not self._waiting[job]:
            del self._waiting[job]
        if not self._waiting:
            self._somebody.clear()

    async def _watch(self) -> None:
        while True:
            await self._somebody.wait()
            seen = self._store.changes.count("ended")
            with suppress(StoreUnavailable):  # who waits, waits on: the job is safe, and the database comes back
                asked = list(self._waiting)
                self._tell(asked, await asyncio.to_thread(self._store.jobs.get_many, asked))
            await asyncio.to_thread(self._store.changes.wait, "ended", seen, LOOK_S)

    def _tell(self, asked: list[str], found: dict[str, Job]) -> None:
        for job in asked:
            latest = found.get(job)
            for version, future in self._waiting.get(job, ()):
                if not future.done() and (latest is None or latest.version != version):
                    future.set_result(latest)
