"""Follows a job by its events until it has ended."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import httpx

from sophia_client.aio.runtime import pause
from sophia_client.aio.transport import AsyncTransport
from sophia_client.answers import Job
from sophia_client.calls import Call, parsed, parsed_text, path_of
from sophia_client.errors import SophiaError, TooManyRequests, WaitTimeout
from sophia_client.server_events import EventReader

_SILENCE_S: Final = 45.0
"""A stream without a byte for this long is broken: the service sends a comment every 15 s."""

_NO_STREAM_S: Final = 2.0
"""Least seconds between two looks at a job while the service has no room for another event stream."""


class AsyncFollower:
    """Follows one job, with as many connections as it takes. `timeout_s` is the most seconds for all of them; None for no limit."""

    def __init__(self, transport: AsyncTransport, job_id: str, timeout_s: float | None) -> None:
        self._transport = transport
        self._job_id = job_id
        self._ends_at = None if timeout_s is None else time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        self._seen = ""
        self._job: Job | None = None
        self._patience = transport.patience()

    async def versions(self) -> AsyncGenerator[Job]:
        """Yield the job as it is now, then at each change, at last when it has ended.

        Raises WaitTimeout, NotFound if the job is deleted, and ConnectionLost.
        """
        while self._job is None or not self._job.has_ended:
            self._check_time()
            failure: SophiaError | None = None
            try:
                async with aclosing(self._from_one_stream()) as jobs:
                    async for job in jobs:
                        self._job = job
                        yield job
            except SophiaError as error:
                failure = error
            if isinstance(failure, TooManyRequests):  # no room for another stream
                job = await self._asked()
                if job != self._job:
                    self._job = job
                    yield job
                await pause(self._bounded(max(failure.retry_after_s or 0, _NO_STREAM_S)))
            elif failure is not None:
                self._check_time()
                await pause(self._bounded(self._patience.pause_s(failure)))

    async def _from_one_stream(self) -> AsyncGenerator[Job]:
        """The job's versions that one connection brings."""
        silence_s = self._bounded(_SILENCE_S)
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": self._seen} if self._seen else {})}
        call = Call("GET", path_of("jobs", self._job_id, "events"), headers=headers, silence_s=silence_s)
        async with self._transport.stream(call) as response:
            if response.status_code == httpx.codes.NO_CONTENT:  # there are no more events
                yield await self._asked()
                return
            events = EventReader()
            async for line in response.aiter_lines():
                self._patience.renew()
                event = events.event_at(line)
                if event is not None:
                    self._seen = event.id
                    job = parsed_text(Job, event.data)
                    yield job
                    if job.has_ended:
                        return
                    self._check_time()
                elif line.startswith(":") and self._bounded(_SILENCE_S) < silence_s:
                    return  # the next connection waits for a shorter time
        raise self._transport.lost(call)

    async def _asked(self) -> Job:
        return parsed(Job, await self._transport.send(Call("GET", path_of("jobs", self._job_id))))

    def _bounded(self, seconds: float) -> float:
        """The seconds, or those that are left until the end if they are fewer."""
        return seconds if self._ends_at is None else max(min(seconds, self._ends_at - time.monotonic()), 0.05)

    def _check_time(self) -> None:
        if self._ends_at is not None and time.monotonic() >= self._ends_at:
            raise WaitTimeout(f"Job {self._job_id} did not end within {self._timeout_s:g} s", self._job)
