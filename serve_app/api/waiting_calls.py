"""Waiting calls: requests that are answered with the finished job. What happens when the caller leaves."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import nullcontext, suppress
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect

from serve_app import errors
from serve_app.api.context import Context
from serve_app.api.explanations import why_no_songs
from serve_app.api.repeated_calls import WaitingCall
from serve_app.api.submission import NATIVE, Origin, submit
from serve_app.api.watch import OnChange
from serve_app.jobs import Job, Status
from serve_app.music import MusicRequest

Submission = Callable[[WaitingCall], Coroutine[Any, Any, tuple[Job, bool]]]
"""Submits the job of a waiting call, and returns what `submit` returns."""


async def finished_job(
    request: Request,
    context: Context,
    song: MusicRequest,
    owner: str,
    idempotency_key: str | None = None,
    *,
    origin: Origin = NATIVE,
    timeout_s: float | None = None,
) -> Job | None:
    """Submit a job, wait until it ends, and return its latest version; None if it was deleted.

    Without `timeout_s` the job's deadline limits the wait; with it, the job may be unfinished. If the caller leaves, the job is
    cancelled after `api.leave_grace_s`, unless the same call is repeated before, or has an idempotency key to ask with later.
    Raises ClientDisconnect then; ServiceStopping without `timeout_s`, if the service is about to stop; TooManyRequests, and what
    `submit` raises.
    """

    async def submission(call: WaitingCall) -> tuple[Job, bool]:
        return await submit(context, song, owner, idempotency_key, origin=origin, call=call)

    return await job_of_call(request, context, owner, submission, timeout_s)


async def job_of_call(
    request: Request | None,
    context: Context,
    owner: str,
    submission: Submission,
    timeout_s: float | None = None,
    *,
    on_change: OnChange | None = None,
) -> Job | None:
    """`finished_job` for a caller that submits the job itself, for example to learn when there is one.

    Without `request`, cancelling the coroutine means that the caller has left. `on_change` gets the job and its later versions.
    """
    with context.limits.waits.hold(owner) if timeout_s != 0 else nullcontext():
        call = WaitingCall()
        submitting = asyncio.ensure_future(submission(call))
        finishing = asyncio.create_task(_finished(context, submitting, timeout_s, on_change))
        leaving = asyncio.create_task(disconnected(request) if request else _never())
        try:
            await asyncio.wait((finishing, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not finishing.done():
                raise ClientDisconnect
            job = finishing.result()
            if job is not None and not job.status.final:
                await context.threads.run(context.store.waiting_calls.answer, job.id)
            return job
        except (ClientDisconnect, asyncio.CancelledError):
            call.leave()
            if not context.watcher.is_stopping:  # else the connection may have ended because the service does
                await asyncio.shield(_leave(context, submitting))
            raise
        finally:
            finishing.cancel()
            leaving.cancel()
            context.repeated_calls.end(call)


def succeeded(job: Job | None) -> Job:
    """The job of a waiting call, None if it was deleted. Raises Conflict, DeadlineExceeded or GenerationError without a song."""
    if job is None:
        raise errors.Conflict("The job was deleted before it had ended")
    if job.status is Status.SUCCEEDED:
        return job
    kinds = {Status.EXPIRED: errors.DeadlineExceeded, Status.FAILED: errors.GenerationError}
    raise kinds.get(job.status, errors.Conflict)(f"Job {job.id} has no songs: {why_no_songs(job)}")


async def _finished(
    context: Context,
    submitting: asyncio.Future[tuple[Job, bool]],
    timeout_s: float | None,
    on_change: OnChange | None,
) -> Job | None:
    job, _ = await asyncio.shield(submitting)
    if timeout_s is None:
        deadline_s = job.deadline_at - job.created_at + 2 * context.args.queue.lease_s
        ended = await context.watcher.finished(job, deadline_s, on_change)
        if ended is not None and not ended.status.final and context.watcher.is_stopping:
            raise _stopping(ended)
        return ended
    return await context.watcher.finished(job, timeout_s, on_change)


def _stopping(job: Job) -> errors.ServiceStopping:
    """The error for a caller who cannot wait any longer. It says what becomes of the job."""
    error = errors.ServiceStopping(
        f"Sophia is stopping. Job {job.id} is kept in its database and goes on after the next start. GET /v1/jobs/{job.id} then "
        f"tells its state, and GET /v1/jobs/{job.id}/audio has the song"
    )
    error.headers = {"Location": f"/v1/jobs/{job.id}"}
    return error


async def disconnected(request: Request) -> None:
    """Return when the caller has left. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _never() -> None:
    await asyncio.Event().wait()


async def _leave(context: Context, submitting: asyncio.Future[tuple[Job, bool]]) -> None:
    """Mark the submitted job as left, unless it has an idempotency key. Waits for the submission first."""
    with suppress(errors.SophiaError, ClientDisconnect):
        job, _ = await submitting
        await context.threads.run(context.store.waiting_calls.leave, job.id)
