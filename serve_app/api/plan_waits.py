"""Waiting for plans without songs. Each API process asks the store for all of its waiting calls at once."""

import asyncio
from contextlib import suppress
from typing import Final

from serve_app.api.threads import Threads
from serve_app.api.watch import JobWatcher
from serve_app.errors import ServiceStopping
from serve_app.store import PlanTask, Store
from serve_app.supervision import SupervisedTask

_POLL_S: Final = 0.25
"""The longest time between two looks. The store announces the end of a plan at once, but not through every pooler."""


class PlanWaits:
    """The calls that wait for a plan. Belongs to one event loop."""

    def __init__(self, store: Store, watcher: JobWatcher) -> None:
        """`watcher` knows when the service is about to stop."""
        self._store = store
        self._watcher = watcher
        self._threads = Threads("plan waits", 1)
        self._waiting: dict[str, asyncio.Future[PlanTask]] = {}
        self._task: asyncio.Task[None] | None = None
        self._health = SupervisedTask(store.supervisor, "plan waits")

    async def ended(self, plan: str, timeout_s: float) -> PlanTask:
        """Wait for a plan to be done or to have failed. Raises TimeoutError, and ServiceStopping before the service stops."""
        future: asyncio.Future[PlanTask] = asyncio.get_running_loop().create_future()
        self._waiting[plan] = future
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch())
        try:
            return await asyncio.wait_for(future, timeout_s)
        finally:
            del self._waiting[plan]

    async def close(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._threads.close()

    async def _watch(self) -> None:
        """Look for plans that have ended, while calls wait for one."""
        while self._waiting:
            if self._watcher.is_stopping:
                self._stop()
                return
            seen = self._store.notifications.count("ended")
            try:
                found = await self._threads.run(self._store.plans.ended, list(self._waiting))
            except Exception as error:  # keep the waits: the plans are safe, and the store comes back
                await asyncio.sleep(self._health.record_failure(error))
                continue
            self._health.record_success()
            for task in found:
                self._wake(task)
            await self._threads.run(self._store.notifications.wait, "ended", seen, _POLL_S)

    def _stop(self) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ServiceStopping())

    def _wake(self, task: PlanTask) -> None:
        future = self._waiting.get(task.id)
        if future is not None and not future.done():
            future.set_result(task)
