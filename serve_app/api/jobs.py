"""The native routes: submit, look, follow, fetch, cancel, forget."""

import asyncio
import re
import secrets
from contextlib import nullcontext, suppress
from typing import Annotated, Any, Final, Literal, cast
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import Field, create_model
from starlette.requests import ClientDisconnect

from serve_app import errors
from serve_app.api.context import Context, Owner, Parts
from serve_app.api.events import EVENT_RESPONSES, EventStream, answer_events
from serve_app.api.files import FILE_RESPONSES, answer_file
from serve_app.api.job_viewer import Viewer
from serve_app.api.problems import ASKING, responses
from serve_app.api.views import JobList, JobView, State
from serve_app.background.webhook_sender import check_url
from serve_app.config import AppArgs
from serve_app.jobs import Job, Status
from serve_app.music import MAX_SEED, MusicRequest
from serve_app.store.jobs import fingerprint

MAX_WAIT_S: Final = 3600
_NOT_BLANK: Final = r"^[^\x00]*[^\s\x00][^\x00]*$"
"""A prompt of a new job says something; jobs of earlier versions may have a blank one."""

_NO_WEBHOOKS: Final = "Not here: the operator has set no `webhook_secret`."
_PREFER_WAIT: Final = re.compile(r'(?:^|[,;\s])wait\s*=\s*"?(\d{1,6})"?\s*(?:$|[,;])', re.IGNORECASE)
"""RFC 7240: among other preferences, with spaces, quoted or not."""

_ALWAYS = (*ASKING, errors.InvalidRequest)
_QUOTA = (errors.QuotaExceeded, errors.QueueFull)
_SUBMIT = (
    *_ALWAYS,
    *_QUOTA,
    errors.MalformedBody,
    errors.BodyTooLarge,
    errors.BodyTooSlow,
    errors.UnsupportedMediaType,
    errors.IdempotencyConflict,
)

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="A name of your choice for this submission: sent again with the same body it gives the same job, so that a "
        "retry after a broken connection makes no second song. The same key with another body gets 409.",
        examples=["order-4711"],
    ),
]


JobId = Annotated[UUID, Path(description="The job's id.", examples=["0190d8a4-7b5e-7c3a-9f00-3c5e8b1f2a4d"])]
Index = Annotated[int, Path(ge=0, le=7, description="Which variation, from 0.", examples=[0])]
ByteRange = Annotated[
    str | None, Header(alias="Range", description="A part of the file (RFC 9110).", examples=["bytes=0-1023"])
]
_FETCH = (
    *_ALWAYS,
    errors.NotFound,
    errors.AudioExpired,
    errors.Conflict,
    errors.RangeNotSatisfiable,
    errors.ArtifactsUnavailable,
)


async def _own_job(parts: Parts, owner: Owner, job_id: JobId) -> Job:
    return await parts.work.run(parts.store.jobs.get, str(job_id), owner)


OwnJob = Annotated[Job, Depends(_own_job)]


def job_routes(args: AppArgs) -> APIRouter:
    """The routes, with the served models named in their schema."""
    router = APIRouter()
    request_type = _request_type(args)
    song_type = create_model(
        "SongRequest",
        __base__=request_type,
        __doc__="One song, answered with its audio; so `variations` is 1.",
        variations=(
            int,
            Field(1, ge=1, le=1, description="Always 1 here; POST /v1/jobs makes several.", examples=[1]),
        ),
    )

    @router.post(
        "/v1/jobs",
        status_code=202,
        summary="Submit a job",
        tags=["jobs"],
        responses={
            200: {
                "model": JobView,
                "description": "The job has ended (with `Prefer: wait=N`, or a repeated Idempotency-Key)",
            },
            **responses(*_SUBMIT),
        },
    )
    async def submit(
        body: request_type,  # type: ignore[valid-type]  # made above, from the configuration
        parts: Parts,
        owner: Owner,
        response: Response,
        idempotency_key: IdempotencyKey = None,
        prefer: Annotated[
            list[str] | None,
            Header(
                description="`wait=N`: hold the answer until the job has ended, at most N seconds (RFC 7240).",
                examples=["wait=30"],
            ),
        ] = None,
    ) -> JobView:
        """Put a song into the queue. The answer is its job; it is on disk, and will not be lost, when you have it."""
        wait_s = _wait_s(", ".join(prefer or ()))
        with (
            parts.limits.waits.taken(owner) if wait_s else nullcontext()
        ):  # asked first: what is refused was not submitted
            job, new = await _submit(parts, body, owner, idempotency_key)
            job = await parts.watcher.finished(job, wait_s) or job if wait_s else job
        if wait_s:
            response.headers["Preference-Applied"] = f"wait={wait_s}"
        response.status_code = 200 if job.status.final else 202
        response.headers["Location"] = f"/v1/jobs/{job.id}"
        if not new:
            response.headers["Idempotent-Replayed"] = "true"
        return await parts.work.run(Viewer(parts).view, job)

    @router.post(
        "/v1/music",
        summary="Make a song and answer with it",
        tags=["jobs"],
        response_class=Response,
        responses={
            **FILE_RESPONSES,
            **responses(
                *_SUBMIT, errors.Conflict, errors.DeadlineExceeded, errors.GenerationError, errors.ArtifactsUnavailable
            ),
        },
    )
    async def music(
        body: song_type,  # type: ignore[valid-type]  # made above
        request: Request,
        parts: Parts,
        owner: Owner,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """The same as POST /v1/jobs, answered with the audio itself: `curl … -o song.mp3`.

        A caller who goes away cancels the job, unless an Idempotency-Key lets them come back for it.
        """
        with parts.limits.waits.taken(owner):
            submission = asyncio.ensure_future(_submit(parts, cast(MusicRequest, body), owner, idempotency_key))
            try:
                job, _ = await asyncio.shield(submission)
                ended = await _unless_they_leave(request, parts, job)
            except (ClientDisconnect, asyncio.CancelledError):
                if idempotency_key is None:
                    await asyncio.shield(_cancel_quietly(parts, submission))
                raise
        return await answer_file(request, parts, _succeeded(ended), 0)

    @router.get("/v1/jobs", summary="List jobs", tags=["jobs"], responses=responses(*_ALWAYS))
    async def list_jobs(
        parts: Parts,
        owner: Owner,
        state: Annotated[
            list[State] | None, Query(description="Only jobs in these states.", examples=[["queued"]])
        ] = None,
        model: Annotated[
            str | None, Query(max_length=100, description="Only jobs of this model.", examples=["ace-step"])
        ] = None,
        limit: Annotated[int, Query(ge=1, le=200, description="Jobs a page.", examples=[50])] = 50,
        cursor: Annotated[UUID | None, Query(description="`next_cursor` of the page before.")] = None,
    ) -> JobList:
        """Your jobs, newest first."""

        def page() -> JobList:
            found = parts.store.jobs.page(
                owner=owner,
                states=state or (),
                model=_printable(model),
                before=str(cursor) if cursor else None,
                limit=limit + 1,
            )
            viewer = Viewer(parts)
            more = found[limit - 1].id if len(found) > limit else None
            return JobList(jobs=viewer.views(found[:limit]), next_cursor=more)

        return await parts.work.run(page)

    @router.get(
        "/v1/jobs/{job_id}", summary="Look at a job", tags=["jobs"], responses=responses(*_ALWAYS, errors.NotFound)
    )
    async def look(parts: Parts, job: OwnJob) -> JobView:
        """State, position and estimated start, progress, files or error."""
        return await parts.work.run(Viewer(parts).view, job)

    @router.get(
        "/v1/jobs/{job_id}/events",
        summary="Follow a job",
        tags=["jobs"],
        response_class=EventStream,
        responses={
            **EVENT_RESPONSES,
            204: {"description": "You have heard the job's end already (`Last-Event-ID`)"},
            **responses(*_ALWAYS, errors.NotFound),
        },
    )
    async def events(
        parts: Parts,
        job: OwnJob,
        last_event_id: Annotated[
            str | None, Header(max_length=20, description="Where to resume: the id of the last event that you have.")
        ] = None,
    ) -> Response:
        """Server-sent events, each with the job as data: `state` when its state changes, `progress` between, `done` at its end.

        The id of an event is the job's version, so that a client that reconnects with Last-Event-ID gets what it missed.
        """
        seen = _version(last_event_id)
        if job.status.final and seen == job.version:
            return Response(status_code=204)  # an EventSource that has heard the end asks again until it gets this
        return answer_events(parts, job, seen)

    @router.get(
        "/v1/jobs/{job_id}/audio",
        summary="Fetch the first file",
        tags=["jobs"],
        response_class=Response,
        responses={**FILE_RESPONSES, **responses(*_FETCH)},
    )
    @router.head("/v1/jobs/{job_id}/audio", include_in_schema=False)
    async def first_file(request: Request, parts: Parts, job: OwnJob, byte_range: ByteRange = None) -> Response:
        """The file of the first variation."""
        return await answer_file(request, parts, _succeeded(job), 0)

    @router.get(
        "/v1/jobs/{job_id}/audio/{index}",
        summary="Fetch a file",
        tags=["jobs"],
        response_class=Response,
        responses={**FILE_RESPONSES, **responses(*_FETCH)},
    )
    @router.head("/v1/jobs/{job_id}/audio/{index}", include_in_schema=False)
    async def file(request: Request, parts: Parts, job: OwnJob, index: Index, byte_range: ByteRange = None) -> Response:
        """The file of a variation, from 0. Honours `Range`, `If-None-Match` and `If-Range`."""
        return await answer_file(request, parts, _succeeded(job), index)

    @router.post(
        "/v1/jobs/{job_id}/cancel",
        summary="Cancel a job",
        tags=["jobs"],
        responses=responses(*_ALWAYS, errors.NotFound, errors.Conflict),
    )
    async def cancel(parts: Parts, owner: Owner, job_id: JobId) -> JobView:
        """End a queued or running job; its worker is free within one denoising step."""
        job = await parts.work.run(parts.store.jobs.cancel, str(job_id), owner)
        return await parts.work.run(Viewer(parts).view, job)

    @router.post(
        "/v1/jobs/{job_id}/retry",
        summary="Run a job again",
        tags=["jobs"],
        responses=responses(*_ALWAYS, *_QUOTA, errors.NotFound, errors.Conflict),
    )
    async def retry(parts: Parts, job: OwnJob) -> JobView:
        """Put a failed, cancelled or expired job back into the queue: same id, same request, new deadline."""
        if job.model not in args.models:
            raise errors.Conflict(
                f"Job {job.id} cannot be retried: its model {job.model!r} is not served any more; submit it again to another one"
            )
        again = await parts.work.run(
            parts.store.jobs.retry, job.id, args.queue.max_attempts, job.owner, limits=args.queue
        )
        return await parts.work.run(Viewer(parts).view, again)

    @router.delete(
        "/v1/jobs/{job_id}",
        status_code=204,
        summary="Forget a job",
        tags=["jobs"],
        responses=responses(*_ALWAYS, errors.NotFound, errors.ArtifactsUnavailable),
    )
    async def delete(parts: Parts, owner: Owner, job_id: JobId) -> None:
        """Forget a job and its audio, whatever its state."""

        def forget() -> None:
            job = parts.store.jobs.delete(str(job_id), owner)
            parts.artifacts.delete([file.key for file in job.audio])

        await parts.work.run(forget)  # one call, so that a caller who leaves does not leave the files behind

    return router


def _request_type(args: AppArgs) -> type[MusicRequest]:
    """MusicRequest as this service takes it, so that schema, error text and OpenAPI page agree.

    `model` lists the served ones; there is no `webhook_url` where none can be signed.
    """
    names: Any = Literal[tuple(args.models)]
    described = MusicRequest.model_fields["model"].description
    prompt = MusicRequest.model_fields["prompt"]
    fields: dict[str, Any] = {
        "prompt": (
            str,
            Field(
                min_length=1,
                max_length=4000,
                pattern=_NOT_BLANK,
                description=prompt.description,
                examples=prompt.examples,
            ),
        ),
        "model": (names | None, Field(None, description=described, examples=[args.default_model])),
    }
    if not args.webhook_secret:
        fields["webhook_url"] = (None, Field(None, description=_NO_WEBHOOKS, examples=[None]))
    made: type[MusicRequest] = create_model(
        "MusicRequest", __base__=MusicRequest, __doc__=MusicRequest.__doc__, **fields
    )
    return made


async def _submit(parts: Context, body: MusicRequest, owner: str, key: str | None) -> tuple[Job, bool]:
    if body.webhook_url:
        check_url(body.webhook_url, parts.args.webhooks.allow_private)
    mark = fingerprint(body.model_dump_json().encode())
    request = MusicRequest.model_validate(
        body.model_dump()
        | {"model": body.model or parts.args.default_model, "seed": _random_seed() if body.seed is None else body.seed}
    )
    queue = parts.args.queue
    return await parts.work.run(
        parts.store.jobs.submit,
        request,
        owner=owner,
        deadline_s=request.deadline_s or queue.default_deadline_s,
        max_attempts=queue.max_attempts,
        idempotency_key=key,
        fingerprint=mark,
        limits=queue,
    )


def _random_seed() -> int:
    return secrets.randbelow(MAX_SEED - 8)


def _wait_s(prefer: str) -> int:
    found = _PREFER_WAIT.search(prefer)
    return min(int(found[1]), MAX_WAIT_S) if found else 0


async def _unless_they_leave(request: Request, parts: Context, job: Job) -> Job | None:
    """The job once it has ended. Raises ClientDisconnect as soon as nobody waits for it any more."""
    patience_s = job.deadline_at - job.created_at + 2 * parts.args.queue.lease_s
    ended = asyncio.create_task(parts.watcher.finished(job, patience_s))
    left = asyncio.create_task(_left(request))
    try:
        await asyncio.wait((ended, left), return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            return ended.result()
        raise ClientDisconnect
    finally:
        ended.cancel()
        left.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancel_quietly(parts: Context, submission: asyncio.Future[tuple[Job, bool]]) -> None:
    """Cancel what was submitted for a caller who has left, be it during the insert: that goes on to its end first."""
    with suppress(errors.SophiaError):
        job, _ = await submission
        await parts.work.run(parts.store.jobs.cancel, job.id)


def _succeeded(job: Job | None) -> Job:
    """The job, when it has files. Else raises what says why not."""
    if job is None:
        raise errors.Conflict("The job was deleted")
    match job.status:
        case Status.SUCCEEDED:
            return job
        case Status.EXPIRED:
            raise errors.DeadlineExceeded(f"Job {job.id} did not end before its deadline")
        case Status.FAILED:
            raise errors.GenerationError(f"Job {job.id} failed: {job.error.message if job.error else None}")
        case _:
            raise errors.Conflict(f"Job {job.id} has no audio: it is {job.status}")


def _version(event_id: str | None) -> int:
    return int(event_id) if event_id and event_id.isdecimal() else -1


def _printable(model: str | None) -> str | None:
    return model.replace("\x00", "") if model else model  # PostgreSQL's text cannot hold NUL
