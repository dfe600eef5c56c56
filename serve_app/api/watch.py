"""Waiting for jobs to change. Each API process polls the store with one query for all waiting requests."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Final

from serve_app.api.threads import Threads
from serve_app.errors import ServiceStopping, Unauthorized
from serve_app.jobs import Job
from serve_app.store import Store
from serve_app.supervision import SupervisedTask

POLL_S: Final = 0.25
"""The longest time between two polls. The store announces the end of a job at once, but PostgreSQL does not announce progress."""

_REST_RATIO: Final = 9
"""After a poll the watcher rests this many times as long as the poll took, up to POLL_S. On SQLite every write by any process
wakes the watcher; without the rest, watching a thousand jobs would occupy a core."""


OnChange = Callable[[Job], Awaitable[None]]
"""Is called with each version of a job that somebody waits for."""


class Change:
    """A new version of a job. Its text for event streams is built once for all of the job's followers."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._text: asyncio.Future[str] | None = None

    async def text(self, threads: Threads, build: Callable[[Job], str]) -> str:
        """Return what `build` returns for the job. The first caller starts it, in a thread. Raises what `build` raises."""
        if self._text is None:
            self._text = asyncio.ensure_future(threads.run(build, self.job))
        return await asyncio.shield(self._text)


class JobWatcher:
    """Wakes the requests that wait for a job. Belongs to one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiters: dict[str, dict[asyncio.Future[Change | None], int]] = {}
        """By job id: the waiting requests, each with the version of the job that it has seen."""
        self._owners: dict[str, str] = {}
        """The owner of each watched job, by job id."""
        self._has_waiters = asyncio.Event()
        self._new_waiter = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._notification: asyncio.Task[bool] | None = None
        self._threads = Threads("watcher", 2)  # one polls, the other waits for a notification
        self._health = SupervisedTask(store.supervisor, "job watcher")
        self.is_stopping = False
        """Whether the service is about to stop, so that nothing waits for jobs any more."""

    async def changed(self, job: Job, timeout_s: float | None = None) -> Change | None:
        """Wait until the job has another version, and return it; None if the job was deleted.

        Raises TimeoutError, ServiceStopping, and Unauthorized if the key of the job's owner was revoked.
        """
        if self.is_stopping:
            raise ServiceStopping
        self._task = self._task or asyncio.create_task(self._watch())
        future: asyncio.Future[Change | None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(job.id, {})[future] = job.version
        self._owners[job.id] = job.owner
        self._has_waiters.set()
        self._new_waiter.set()  # poll at once: the job may have changed since the caller read it
        try:
            return await asyncio.wait_for(future, timeout_s)
        finally:
            self._remove(job.id, future)

    async def finished(self, job: Job, timeout_s: float, on_change: OnChange | None = None) -> Job | None:
        """Wait up to `timeout_s` seconds for the job to reach a final state. Return its latest version; None if it was deleted.

        `on_change` gets the job as it is now, and each later version. If the service is about to stop, return at once. Raises
        Unauthorized if the key of the job's owner was revoked.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        latest: Job | None = job
        if on_change is not None:
            await on_change(job)
        with suppress(TimeoutError, ServiceStopping):
            while latest is not None and not latest.status.final:
                change = await self.changed(latest, deadline - loop.time())
                latest = change.job if change else None
                if on_change is not None and latest is not None:
                    await on_change(latest)
        return latest

    def end_waits_except(self, owners: Collection[str]) -> None:
        """End the waits for jobs of all other owners with Unauthorized. Jobs without an owner are not affected."""
        for job, waiters in self._waiters.items():
            owner = self._owners[job]
            if owner and owner not in owners:
                for future in waiters:
                    if not future.done():
                        future.set_exception(Unauthorized("This API key was revoked"))

    def stop(self) -> None:
        """End all waits, now and from now on, because the service is about to stop."""
        self.is_stopping = True
        for waiters in self._waiters.values():
            for future in waiters:
                if not future.done():
                    future.set_exception(ServiceStopping())

    async def close(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._notification is not None:
            await asyncio.wait((self._notification,))
        self._threads.close()

    def _remove(self, job: str, future: asyncio.Future[Change | None]) -> None:
        del self._waiters[job][future]
        if not self._waiters[job]:
            del self._waiters[job]
            del self._owners[job]
        if not self._waiters:
            self._has_waiters.clear()

    async def _watch(self) -> None:
        while True:
            await self._has_waiters.wait()
            self._new_waiter.clear()
            seen = self._store.notifications.count("ended")
            started_at = asyncio.get_running_loop().time()
            try:
                await self._poll()
            except Exception as error:  # keep the waiters: the jobs are safe, and the store comes back
                await asyncio.sleep(self._health.record_failure(error))
                continue
            self._health.record_success()
            took_s = asyncio.get_running_loop().time() - started_at
            await asyncio.sleep(min(_REST_RATIO * took_s, POLL_S))
            await self._wait_for_next_poll(seen)

    async def _poll(self) -> None:
        """Read the versions of all watched jobs, then read only the jobs that have changed."""
        watched = list(self._waiters)
        versions = await self._threads.run(self._store.jobs.versions, watched)
        changed = [job for job in watched if job in versions and self._has_changed(job, versions[job])]
        found = await self._threads.run(self._store.jobs.get_many, changed) if changed else {}
        for job in watched:
            if job in found:
                self._wake(job, Change(found[job]))
            elif job not in versions:
                self._wake(job, None)

    def _has_changed(self, job: str, version: int) -> bool:
        return any(seen != version for seen in self._waiters.get(job, {}).values())

    def _wake(self, job: str, change: Change | None) -> None:
        for future, seen in self._waiters.get(job, {}).items():
            if not future.done() and (change is None or change.job.version != seen):
                future.set_result(change)

    async def _wait_for_next_poll(self, seen: int) -> None:
        """Wait until a job has ended since notification `seen`, a new waiter arrives, or POLL_S has passed."""
        if self._notification is None or self._notification.done():  # else nothing has changed since that wait began
            wait = self._threads.run(self._store.notifications.wait, "ended", seen, POLL_S)
            self._notification = asyncio.create_task(wait)
        new_waiter = asyncio.create_task(self._new_waiter.wait())
        await asyncio.wait((self._notification, new_waiter), return_when=asyncio.FIRST_COMPLETED)
        new_waiter.cancel()
