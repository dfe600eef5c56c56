"""A job's changes as server-sent events. All followers of a job share the text of each event."""

import math
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import Any, Final, Literal

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve_app.api.context import Context
from serve_app.api.job_presenter import JobPresenter
from serve_app.api.watch import Change
from serve_app.errors import ServiceStopping, StoreUnavailable, Unauthorized
from serve_app.jobs import Job, Status

KEEPALIVE_S: Final = 15.0
"""How often an idle stream sends a comment, so that proxies in between do not close it."""

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

_HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the latter stops nginx from buffering


class EventStream(StreamingResponse):
    """A stream of server-sent events. FastAPI's own class would serialize each event again for every follower."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[bytes], slot: AbstractContextManager[None], status_code: int = 200
    ) -> None:
        """`slot` is held while the events are sent; an error that entering it raises is the answer instead.

        FastAPI reads the default of `status_code` for the OpenAPI page.
        """
        super().__init__(events, status_code, headers=_HEADERS)
        self._slot = slot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        with self._slot:
            await super().__call__(scope, receive, send)


def answer_events(context: Context, job: Job, seen: int, until: float | None = None) -> EventStream:
    """The stream of a job's changes after version `seen`, until the time `until` (seconds since 1970) at the latest."""
    return EventStream(_events(context, job, seen, until), context.limits.streams.hold(job.owner))


async def _events(context: Context, job: Job, seen: int, until: float | None) -> AsyncIterator[bytes]:
    """Yield events until the job has ended or is deleted, the caller's key is revoked, the service stops, or the database fails.

    After a stop or a database failure the client reconnects and resumes.
    """
    change: Change | None = Change(job)
    state: Status | None = None
    left_s = math.inf if until is None else until - time.time()
    ends_at = time.monotonic() + left_s
    while change is not None:
        job = change.job
        if job.version > seen:
            try:
                event = await _event(context, change, state)
            except StoreUnavailable:
                return
            yield event
            seen = job.version
            state = job.status
        if job.status.final:
            return
        try:
            change = await context.watcher.changed(job, min(KEEPALIVE_S, ends_at - time.monotonic()))
        except TimeoutError:
            if time.monotonic() >= ends_at:
                return
            yield b": ping\n\n"
        except (ServiceStopping, Unauthorized):
            return


async def _event(context: Context, change: Change, previous: Status | None) -> bytes:
    job = change.job
    text = await change.text(context.threads, lambda job: JobPresenter(context).view(job).model_dump_json())
    return f"event: {_event_type(job, previous)}\ndata: {text}\nid: {job.version}\n\n".encode()


def _event_type(job: Job, previous: Status | None) -> Literal["done", "progress", "state"]:
    if job.status.final:
        return "done"
    return "progress" if job.status == previous else "state"
