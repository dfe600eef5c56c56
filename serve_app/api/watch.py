"""Waiting for a job to change: one small query for all who wait, in every API process, and one view for all who follow."""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final

from serve_app.api.threads import Threads
from serve_app.errors import Unauthorized
from serve_app.jobs import Job
from serve_app.store import Store
from serve_app.supervision import SupervisedTask

LOOK_S: Final = 0.25
"""An end is seen at once; progress, of which PostgreSQL sends no word, within this time."""

_REST: Final = 9
"""After a look the watcher rests so many times as long as the look took, up to LOOK_S: on SQLite every write of anybody wakes it,
and whoever watches a thousand jobs must not spend a core on that."""


class Change:
    """A job as it was at one version, with what its followers are told, which is made once for all of them."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._text: asyncio.Future[str] | None = None

    async def text(self, threads: Threads, make: Callable[[Job], str]) -> str:
        """What `make` gives for the job. It runs in a thread, for the first follower who asks. Raises what it raises."""
        if self._text is None:
            self._text = asyncio.ensure_future(threads.run(make, self.job))
        return await asyncio.shield(self._text)


class JobWatcher:
    """Wakes the requests that wait for a job. Belongs to one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[str, dict[asyncio.Future[Change | None], int]] = {}
        """By job, those who wait and the version that each of them knows."""
        self._owners: dict[str, str] = {}
        """By job, whose it is."""
        self._somebody = asyncio.Event()
        self._newcomer = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._bell: asyncio.Task[bool] | None = None
        self._threads = Threads("watcher", 2)  # one looks, the other waits for the bell
        self._health = SupervisedTask(store.supervisor, "job watcher")

    async def changed(self, job: Job, timeout: float | None = None) -> Change | None:
        """The job as soon as it has another version; None when it is gone.

        Raises TimeoutError, and Unauthorized when the key of the job's owner was revoked.
        """
        self._task = self._task or asyncio.create_task(self._watch())
        future: asyncio.Future[Change | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(job.id, {})[future] = job.version
        self._owners[job.id] = job.owner
        self._somebody.set()
        self._newcomer.set()  # look at once: it may have changed since the caller did
        try:
            return await asyncio.wait_for(future, timeout)
        finally:
            self._leave(job.id, future)

    async def finished(self, job: Job, timeout: float) -> Job | None:
        """The job once it has ended, or as it is after `timeout` seconds; None when it is gone.

        Raises Unauthorized when the key of the job's owner was revoked.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        latest: Job | None = job
        with suppress(TimeoutError):
            while latest is not None and not latest.status.final:
                left_s = deadline - asyncio.get_running_loop().time()
                change = await self.changed(latest, left_s)
                latest = change.job if change else None
        return latest

    def keep_only(self, owners: Collection[str]) -> None:
        """Nobody else waits any longer; a job without an owner is everybody's."""
        for job, waiting in self._waiting.items():
            owner = self._owners[job]
            if owner and owner not in owners:
                for future in waiting:
                    if not future.done():
                        future.set_exception(Unauthorized("This API key was revoked"))

    async def close(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._bell is not None:
            await asyncio.wait((self._bell,))
        self._threads.close()

    def _leave(self, job: str, future: asyncio.Future[Change | None]) -> None:
        del self._waiting[job][future]
        if not self._waiting[job]:
            del self._waiting[job]
            del self._owners[job]
        if not self._waiting:
            self._somebody.clear()

    async def _watch(self) -> None:
        while True:
            await self._somebody.wait()
            self._newcomer.clear()
            seen = self._store.notifications.count("ended")
            began = asyncio.get_running_loop().time()
            try:
                await self._look()
            except Exception as error:  # who waits, waits on: the job is safe, and what is away comes back
                await asyncio.sleep(self._health.record_failure(error))
                continue
            self._health.record_success()
            took_s = asyncio.get_running_loop().time() - began
            await asyncio.sleep(min(_REST * took_s, LOOK_S))
            await self._until_there_is_reason(seen)

    async def _look(self) -> None:
        """Ask for the versions of all watched jobs, and for those jobs only that have another one."""
        asked = list(self._waiting)
        versions = await self._threads.run(self._store.jobs.versions, asked)
        changed = [job for job in asked if job in versions and self._is_news(job, versions[job])]
        found = await self._threads.run(self._store.jobs.get_many, changed) if changed else {}
        for job in asked:
            if job in found:
                self._tell(job, Change(found[job]))
            elif job not in versions:
                self._tell(job, None)

    def _is_news(self, job: str, version: int) -> bool:
        return any(known != version for known in self._waiting.get(job, {}).values())

    def _tell(self, job: str, change: Change | None) -> None:
        for future, known in self._waiting.get(job, {}).items():
            if not future.done() and (change is None or change.job.version != known):
                future.set_result(change)

    async def _until_there_is_reason(self, seen: int) -> None:
        """Until something has changed since `seen`, somebody new waits, or LOOK_S is over."""
        if self._bell is None or self._bell.done():  # else nothing has changed since it was hung up
            self._bell = asyncio.create_task(self._threads.run(self._store.notifications.wait, "ended", seen, LOOK_S))
        newcomer = asyncio.create_task(self._newcomer.wait())
        await asyncio.wait((self._bell, newcomer), return_when=asyncio.FIRST_COMPLETED)
        newcomer.cancel()
