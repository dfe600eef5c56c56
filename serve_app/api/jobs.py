"""Routes for jobs: submit, list, get, follow, cancel, retry, delete.

An `operation_id` keeps the id that earlier versions published: generated clients name their methods after it.
"""

import re
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Header, Query, Response

from serve_app import errors
from serve_app.api.auth import Owner, VisitorDep
from serve_app.api.context import Context, ContextDep
from serve_app.api.error_responses import QUOTA, SUBMISSION, WITH_PARAMETERS, error_responses
from serve_app.api.events import EVENT_RESPONSES, EventStream, answer_events
from serve_app.api.job_presenter import JobPresenter, signed_links
from serve_app.api.multipart import multipart_body
from serve_app.api.parameters import IdempotencyKey, JobId, OwnJob, VisitedJob
from serve_app.api.signed_links import link_signer
from serve_app.api.submission import submit
from serve_app.api.submission_route import SubmissionRoute
from serve_app.api.views.jobs import JobList, JobView, SignedLinks, State
from serve_app.jobs import Job
from serve_app.music import MusicRequest

router = APIRouter(tags=["jobs"], route_class=SubmissionRoute)

MAX_WAIT_S: Final = 3600
_PREFER_WAIT: Final = re.compile(r'(?:^|[,;\s])wait\s*=\s*"?(\d{1,6})"?\s*(?:$|[,;])', re.IGNORECASE)
"""`wait=N` in a Prefer header (RFC 7240), which may hold other preferences, spaces and quotes."""


@router.post(
    "/v1/jobs",
    status_code=202,
    operation_id="submit_v1_jobs_post",
    summary="Submit a job",
    openapi_extra=multipart_body("MusicRequest-Input"),
    responses={
        200: {
            "model": JobView,
            "description": "The job has ended (with `Prefer: wait=N`, or a repeated Idempotency-Key)",
        },
        **error_responses(*SUBMISSION),
    },
)
async def submit_job(
    *,
    body: MusicRequest,
    context: ContextDep,
    owner: Owner,
    response: Response,
    idempotency_key: IdempotencyKey = None,
    prefer: Annotated[
        list[str] | None,
        Header(
            description="`wait=N`: answer when the job has ended, or after N seconds (RFC 7240).",
            examples=["wait=30"],
        ),
    ] = None,
) -> JobView:
    """Add a song to the queue and answer with its job. The job is on disk by then, so it cannot be lost."""
    wait_s = _preferred_wait_s(prefer or [])
    with _wait_slot(context, owner, wait_s):  # before the submission, so that a refused request leaves no job
        job, is_new = await submit(context, body, owner, idempotency_key)
        if wait_s:
            job = await context.watcher.finished(job, wait_s) or job
            response.headers["Preference-Applied"] = f"wait={wait_s}"
    response.status_code = 200 if job.status.final else 202
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    if not is_new:
        response.headers["Idempotent-Replayed"] = "true"
    return await _view(context, job)


def _preferred_wait_s(headers: list[str]) -> int:
    found = _PREFER_WAIT.search(", ".join(headers))
    return min(int(found[1]), MAX_WAIT_S) if found else 0


def _wait_slot(context: Context, owner: str, wait_s: int) -> AbstractContextManager[None]:
    return context.limits.waits.hold(owner) if wait_s else nullcontext()


@router.get("/v1/jobs", summary="List jobs", responses=error_responses(*WITH_PARAMETERS))
async def list_jobs(
    *,
    context: ContextDep,
    owner: Owner,
    state: Annotated[list[State] | None, Query(description="Only jobs in these states.", examples=[["queued"]])] = None,
    model: Annotated[
        str | None, Query(max_length=100, description="Only jobs of this model.", examples=["ace-step"])
    ] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="Jobs per page.", examples=[50])] = 50,
    cursor: Annotated[UUID | None, Query(description="`next_cursor` of the previous page.")] = None,
) -> JobList:
    """Your jobs, newest first."""
    found = await context.threads.run(
        context.store.jobs.page,
        owner=owner,
        states=state or (),
        model=_without_nul(model),
        before=str(cursor) if cursor else None,
        limit=limit + 1,  # the extra job shows whether there is another page
    )
    page = found[:limit]
    views = await context.threads.run(JobPresenter(context).views, page)
    return JobList(jobs=views, next_cursor=page[-1].id if len(found) > limit else None)


def _without_nul(model: str | None) -> str | None:
    return model.replace("\x00", "") if model else model  # PostgreSQL's text type cannot hold NUL


@router.get(
    "/v1/jobs/{job_id}",
    operation_id="look_v1_jobs__job_id__get",
    summary="Get a job",
    responses=error_responses(*WITH_PARAMETERS, errors.NotFound),
)
async def get_job(context: ContextDep, job: OwnJob) -> JobView:
    """The job's state, queue position, progress, and its files or error."""
    return await _view(context, job)


@router.get(
    "/v1/jobs/{job_id}/links",
    summary="Get signed links",
    responses=error_responses(*WITH_PARAMETERS, errors.NotFound),
)
async def get_links(
    context: ContextDep,
    owner: Owner,
    job: OwnJob,
    response: Response,
    seconds: Annotated[
        float | None,
        Query(
            ge=1,
            description="How long the links are valid. The operator's `api.link_ttl_s` is the longest time, and the default.",
            examples=[600],
        ),
    ] = None,
) -> SignedLinks:
    """Links to the job's songs and events that open without an API key until they expire: for players and pages in browsers.

    Whoever has a link can use it, and it opens nothing else. Revoking the API key closes it.
    """
    signer = await link_signer(context, owner, seconds)
    response.headers["Cache-Control"] = "no-store"
    return signed_links(job, signer)


@router.get(
    "/v1/jobs/{job_id}/events",
    operation_id="events_v1_jobs__job_id__events_get",
    summary="Follow a job",
    response_class=EventStream,
    responses={
        **EVENT_RESPONSES,
        204: {"description": "`Last-Event-ID` is the job's last event; there are no more"},
        **error_responses(*WITH_PARAMETERS, errors.NotFound),
    },
)
async def follow_job(
    context: ContextDep,
    visitor: VisitorDep,
    job: VisitedJob,
    last_event_id: Annotated[
        str | None, Header(max_length=20, description="The id of the last event that you received, to resume there.")
    ] = None,
) -> Response:
    """Server-sent events, each with the job as its data.

    `state`: the job's state has changed. `progress`: it has made progress. `done`: it has ended. An event's id is the job's
    version; a client that reconnects with Last-Event-ID gets the latest version if it has missed any. A stream that a signed link
    has opened ends when the link expires.
    """
    seen = int(last_event_id) if last_event_id and last_event_id.isdecimal() else -1
    if job.status.final and seen == job.version:
        return Response(status_code=204)  # a browser's EventSource reconnects until it gets 204
    return answer_events(context, job, seen, visitor.until)


@router.post(
    "/v1/jobs/{job_id}/cancel",
    operation_id="cancel_v1_jobs__job_id__cancel_post",
    summary="Cancel a job",
    responses=error_responses(*WITH_PARAMETERS, errors.NotFound, errors.Conflict),
)
async def cancel_job(context: ContextDep, owner: Owner, job_id: JobId) -> JobView:
    """Cancel a queued or running job. A running job's worker stops within one denoising step."""
    job = await context.threads.run(context.store.jobs.cancel, str(job_id), owner)
    return await _view(context, job)


@router.post(
    "/v1/jobs/{job_id}/retry",
    operation_id="retry_v1_jobs__job_id__retry_post",
    summary="Retry a job",
    responses=error_responses(*WITH_PARAMETERS, *QUOTA, errors.NotFound, errors.Conflict),
)
async def retry_job(context: ContextDep, job: OwnJob) -> JobView:
    """Put a failed, cancelled or expired job back into the queue, with the same id and request and a new deadline."""
    if job.model not in context.args.models:
        raise errors.Conflict(
            f"Job {job.id} cannot be retried: its model {job.model!r} is no longer served. Submit it again with another model"
        )
    queue = context.args.queue
    retried = await context.threads.run(context.store.jobs.retry, job.id, queue.max_attempts, job.owner, limits=queue)
    return await _view(context, retried)


@router.delete(
    "/v1/jobs/{job_id}",
    status_code=204,
    operation_id="delete_v1_jobs__job_id__delete",
    summary="Delete a job",
    responses=error_responses(*WITH_PARAMETERS, errors.NotFound, errors.Conflict, errors.ArtifactsUnavailable),
)
async def delete_job(context: ContextDep, owner: Owner, job_id: JobId) -> None:
    """Delete a job in any state, and its audio. One whose songs a queued or running job needs cannot be deleted."""
    # one call, so that the files are deleted even if the caller disconnects in between
    await context.threads.run(_delete, context, str(job_id), owner)


def _delete(context: Context, job_id: str, owner: str) -> None:
    job = context.store.jobs.delete(job_id, owner)
    context.artifacts.delete([key for file in job.audio for key in file.keys])


async def _view(context: Context, job: Job) -> JobView:
    return await context.threads.run(JobPresenter(context).view, job)
