"""Tells a repetition of a waiting call, whose first caller has left, from a second call by somebody who also wants a song."""

import asyncio
from typing import Final

from serve_app.api.threads import Threads
from serve_app.jobs import Job
from serve_app.store.waiting_calls import WaitingCallStore

_NOTICE_S: Final = 1.0
"""Within so many seconds it is noticed, also by another API process, that a caller has left. A repetition can arrive sooner."""

_LOOK_S: Final = 0.1


class WaitingCall:
    """A call that is answered with the finished job. Belongs to one event loop."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.left: asyncio.Future[None] = loop.create_future()
        """Done when the caller has left, or the call has ended."""
        self.ended: asyncio.Future[None] = loop.create_future()
        """Done when the call has been answered, or its job has been marked as left."""
        self.key: tuple[str, str] | None = None
        """The owner and the request's fingerprint, once they are known."""

    @property
    def is_left(self) -> bool:
        """Whether the caller has left."""
        return self.left.done()

    def leave(self) -> None:
        """Record that the caller has left."""
        if not self.left.done():
            self.left.set_result(None)


class RepeatedCalls:
    """The open waiting calls of one API process. Belongs to one event loop."""

    def __init__(self, threads: Threads, store: WaitingCallStore, grace_s: float) -> None:
        self._threads = threads
        self._store = store
        self._grace_s = grace_s
        self._open: dict[tuple[str, str], set[WaitingCall]] = {}

    def end(self, call: WaitingCall) -> None:
        """Forget a call that has been answered, or whose job has been marked as left."""
        call.leave()
        call.ended.set_result(None)
        if call.key is None:
            return
        self._open[call.key].discard(call)
        if not self._open[call.key]:
            del self._open[call.key]

    async def taken_over(self, call: WaitingCall, owner: str, fingerprint: str) -> Job | None:
        """The job of an equal, earlier call whose caller has left, which `call` takes over. None if there is none.

        While another caller seems to wait for such a job, look again for a moment: the two may be the same. If it is known here
        that the earlier caller has left, wait until its job is marked.
        """
        earlier = self._begin(call, (owner, fingerprint))
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + min(_NOTICE_S, self._grace_s)
        while True:
            job = await self._threads.run(self._store.take_over, owner, fingerprint, self._grace_s)
            if job is not None:
                return job
            earlier &= self._open[(owner, fingerprint)]
            left_s = give_up_at - loop.time()
            if leaving := [other.ended for other in earlier if other.is_left]:
                await asyncio.wait(leaving)
            elif left_s <= 0:
                return None
            elif earlier:
                await asyncio.wait([other.left for other in earlier], timeout=left_s, return_when="FIRST_COMPLETED")
            elif await self._threads.run(self._store.is_waited_for, owner, fingerprint):
                await asyncio.sleep(_LOOK_S)
            else:
                return None

    def _begin(self, call: WaitingCall, key: tuple[str, str]) -> set[WaitingCall]:
        """Add a call, and return the open calls before it."""
        here = self._open.setdefault(key, set())
        earlier = set(here)
        here.add(call)
        call.key = key
        return earlier
