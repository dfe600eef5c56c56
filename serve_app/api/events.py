"""Answering with a job's life as server-sent events, which all followers of a job share."""

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import Any, Final

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve_app.api.context import Context
from serve_app.api.job_viewer import Viewer
from serve_app.api.watch import Change
from serve_app.errors import StoreUnavailable, Unauthorized
from serve_app.jobs import Job, Status

KEEPALIVE_S: Final = 15.0
"""A stream in which nothing happens says so often that it lives, or a proxy between would close it."""

EVENT_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The events, until the job has ended",
        "content": {
            "text/event-stream": {
                "itemSchema": {
                    "type": "object",
                    "properties": {name: {"type": "string"} for name in ("event", "id", "data")},
                }
            }
        },
    },
}

_HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the latter keeps nginx from buffering


class EventStream(StreamingResponse):
    """Server-sent events. FastAPI's own would make each event anew for each follower."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[bytes], place: AbstractContextManager[None], status_code: int = 200
    ) -> None:
        """`place` is had from the first byte to the last; what it raises is the answer. FastAPI reads the status off here."""
        super().__init__(events, status_code, headers=_HEADERS)
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        with self._place:
            await super().__call__(scope, receive, send)


def answer_events(parts: Context, job: Job, seen: int) -> EventStream:
    """The stream of a job's changes after the version `seen`."""
    return EventStream(_events(parts, job, seen), parts.limits.streams.taken(job.owner))


async def _events(parts: Context, job: Job, seen: int) -> AsyncIterator[bytes]:
    """Ends with the job's end, when it is deleted, or soon after the key was revoked.

    A database that goes away ends it, too: the client comes back.
    """
    change: Change | None = Change(job)
    state: Status | None = None
    while change is not None:
        job = change.job
        if job.version > seen:
            seen = job.version
            kind = "done" if job.status.final else "progress" if job.status == state else "state"
            state = job.status
            try:
                view = await change.text(parts.work, lambda job: Viewer(parts).view(job).model_dump_json())
            except StoreUnavailable:
                return
            yield f"event: {kind}\ndata: {view}\nid: {job.version}\n\n".encode()
        if job.status.final:
            return
        try:
            change = await parts.watcher.changed(job, KEEPALIVE_S)
        except TimeoutError:
            yield b": ping\n\n"
        except Unauthorized:
            return
