"""Route for a song in one request: POST /v1/music waits for the job and answers with its audio."""

import asyncio
from contextlib import suppress

from fastapi import APIRouter, Request, Response
from pydantic import Field
from starlette.requests import ClientDisconnect

from serve_app import errors
from serve_app.api.auth import Owner
from serve_app.api.context import Context, ContextDep
from serve_app.api.error_responses import SUBMISSION, error_responses
from serve_app.api.file_answer import FILE_RESPONSES, answer_file, check_has_audio
from serve_app.api.parameters import IdempotencyKey
from serve_app.api.submission import submit
from serve_app.api.submission_route import SubmissionRoute
from serve_app.jobs import Job
from serve_app.music import MusicRequest

router = APIRouter(tags=["jobs"], route_class=SubmissionRoute)


class SongRequest(MusicRequest):
    """A request for one song, answered with its audio; `variations` is therefore 1."""

    variations: int = Field(
        1, ge=1, le=1, description="Always 1. POST /v1/jobs generates several variations.", examples=[1]
    )


@router.post(
    "/v1/music",
    operation_id="music_v1_music_post",
    summary="Generate a song and answer with it",
    response_class=Response,
    responses={
        **FILE_RESPONSES,
        **error_responses(
            *SUBMISSION, errors.Conflict, errors.DeadlineExceeded, errors.GenerationError, errors.ArtifactsUnavailable
        ),
    },
)
async def generate_song(
    body: SongRequest,
    request: Request,
    context: ContextDep,
    owner: Owner,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Like POST /v1/jobs, but the answer is the audio: `curl … -o song.mp3`.

    If the caller disconnects, the job is cancelled, unless the request has an Idempotency-Key to fetch the result with later.
    """
    with context.limits.waits.hold(owner):
        submission = asyncio.ensure_future(submit(context, body, owner, idempotency_key))
        try:
            job, _ = await asyncio.shield(submission)
            ended = await _ended_unless_disconnected(request, context, job)
        except (ClientDisconnect, asyncio.CancelledError):
            if idempotency_key is None:
                await asyncio.shield(_cancel(context, submission))
            raise
    return await answer_file(request, context, check_has_audio(ended), 0)


async def _ended_unless_disconnected(request: Request, context: Context, job: Job) -> Job | None:
    """Wait for the job to end. Raises ClientDisconnect as soon as the caller disconnects."""
    timeout_s = job.deadline_at - job.created_at + 2 * context.args.queue.lease_s
    ended = asyncio.create_task(context.watcher.finished(job, timeout_s))
    disconnected = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((ended, disconnected), return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            return ended.result()
        raise ClientDisconnect
    finally:
        ended.cancel()
        disconnected.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancel(context: Context, submission: asyncio.Future[tuple[Job, bool]]) -> None:
    """Cancel the submitted job. If the caller disconnected during the submission, wait for that first."""
    with suppress(errors.SophiaError):
        job, _ = await submission
        await context.threads.run(context.store.jobs.cancel, job.id)
