"""RunPod's serverless REST API, for clients that called a RunPod endpoint before they called Sophia.

State names, times and answers are those that RunPod's documentation describes; where its Python SDK expects something else, that.
"""

import base64
import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from serve_app import __version__
from serve_app.api.auth import Owner
from serve_app.api.compat.family import Family, leave_out_none
from serve_app.api.compat.translation import Translated, translated
from serve_app.api.context import Context, ContextDep
from serve_app.api.fleet import count_ready, decisions_by_model, is_starting, living_workers, of_model
from serve_app.api.inline_audio import InlineAudioAnswer, songs_that_fit
from serve_app.api.parameters import IdempotencyKey
from serve_app.api.submission import Origin, submit
from serve_app.api.views.jobs import Progress
from serve_app.api.views.problem import Problem
from serve_app.api.waiting_calls import finished_job
from serve_app.background.webhook_sender import WebhookForm
from serve_app.errors import ArtifactsUnavailable, Conflict, NotFound, RunLimitExceeded
from serve_app.jobs import Job, Status, WorkerPhase, new_id
from serve_app.plurals import alternatives

_ORIGIN: Final = Origin("runpod")

STATES: Final[Mapping[Status, str]] = {
    Status.QUEUED: "IN_QUEUE",
    Status.RUNNING: "IN_PROGRESS",
    Status.SUCCEEDED: "COMPLETED",
    Status.FAILED: "FAILED",
    Status.CANCELLED: "CANCELLED",
}
"""RunPod's names of the states. An expired job is gone: its time to live is over."""

_TIMED_OUT: Final = "TIMED_OUT"
_RETRYABLE: Final = ("FAILED", _TIMED_OUT)
_STATUSES: Final = {401: 401, 404: 404, 429: 429}
"""The error statuses that RunPod has besides 400 and 500, to which all others are reduced."""

_RUN_BYTES: Final = 10_000_000
_RUNSYNC_BYTES: Final = 20_000_000
"""RunPod's limits of an answer. Songs that do not fit are named by their address only."""

_PING: Final = "ping-"
"""Begins the id of the job that a ping appears to be. Any API process can answer for it, and no row is written."""

_WEBHOOK_RETRIES_S: Final = (10.0, 10.0)


class Policy(BaseModel):
    """How long a job may take, in milliseconds."""

    executionTimeout: float = Field(600_000, ge=5_000, le=604_800_000)
    ttl: float = Field(86_400_000, ge=10_000, le=604_800_000)
    lowPriority: bool = False


class RunRequest(BaseModel):
    """The body of /run and /runsync. `s3Config` is ignored, as Sophia has an audio store of its own."""

    input: dict[str, Any]
    webhook: str | None = None
    policy: Policy = Policy()

    @property
    def is_ping(self) -> bool:
        """Whether the old handler would have answered without touching a model."""
        return bool(self.input.get("ping"))

    def translated(self, model: str) -> Translated:
        """The song that is asked for. Raises InvalidRequest."""
        decided: dict[str, tuple[str, Any]] = {
            "deadline_s": ("policy.ttl", self.policy.ttl / 1000),
            "run_limit_s": ("policy.executionTimeout", self.policy.executionTimeout / 1000),
        }
        if self.policy.lowPriority:
            decided["priority"] = ("policy.lowPriority", 0)
        if self.webhook:
            decided["webhook_url"] = ("webhook", self.webhook)
        asked = translated(self.input, "input", decided)
        return asked if asked.song.model else asked._replace(song=asked.song.model_copy(update={"model": model}))


async def _endpoint(endpoint_id: str, context: ContextDep, _: Owner) -> str:
    """The model that serves an endpoint. Raises NotFound, which lists the endpoints."""
    args = context.args
    endpoints = {**{name: name for name in args.models}, **args.api.runpod_endpoints}
    if endpoint_id not in endpoints:
        raise NotFound(f"There is no endpoint {endpoint_id[:100]!r}. Use {alternatives(endpoints)}")
    return endpoints[endpoint_id]


_Model = Annotated[str, Depends(_endpoint)]

router = APIRouter(prefix="/v2/{endpoint_id}", include_in_schema=False)


@router.post("/run")
async def run(
    body: RunRequest, context: ContextDep, owner: Owner, model: _Model, idempotency_key: IdempotencyKey = None
) -> dict[str, Any]:
    """Submit a job."""
    if body.is_ping:
        return {"id": f"{_PING}{new_id()}", "status": STATES[Status.QUEUED]}
    asked = body.translated(model)
    with asked.errors_named_as_given():
        job, _ = await submit(context, asked.song, owner, idempotency_key, origin=_ORIGIN)
    return {"id": job.id, "status": _state(job)}


@router.post("/runsync")
async def runsync(
    *,
    body: RunRequest,
    request: Request,
    context: ContextDep,
    owner: Owner,
    model: _Model,
    idempotency_key: IdempotencyKey = None,
    wait: Annotated[int, Query(ge=1_000, le=300_000)] = 90_000,
) -> Response:
    """Submit a job and wait for it, at most `wait` milliseconds."""
    if body.is_ping:
        return JSONResponse(_pong(f"{_PING}{new_id()}"))
    asked = body.translated(model)
    with asked.errors_named_as_given():
        job = await finished_job(
            request, context, asked.song, owner, idempotency_key, origin=_ORIGIN, timeout_s=wait / 1000
        )
    if job is None:
        raise NotFound("The job was deleted")
    if not job.status.final:
        return JSONResponse({"id": job.id, "status": _state(job)})
    return _view(context, job, request, _RUNSYNC_BYTES)


@router.api_route("/status/{job_id}", methods=["GET", "POST"])
async def status(job_id: str, request: Request, context: ContextDep, owner: Owner, _: _Model) -> Response:
    """A job's state, times and output."""
    if job_id.startswith(_PING):
        return JSONResponse(_pong(job_id))
    return _view(context, await _own_job(context, owner, job_id), request, _RUN_BYTES)


@router.api_route("/stream/{job_id}", methods=["GET", "POST"])
async def stream(job_id: str, request: Request, context: ContextDep, owner: Owner, _: _Model) -> Response:
    """The songs of a job that has ended, each once. The SDK reads on until the state is one that it knows as final."""
    if job_id.startswith(_PING):
        return JSONResponse({"status": STATES[Status.SUCCEEDED], "stream": []})
    job = await _own_job(context, owner, job_id)
    if job.status is Status.CANCELLED:
        return JSONResponse({"status": "FAILED", "error": "cancelled", "stream": []})
    if job.status is Status.SUCCEEDED and await context.threads.run(context.store.foreign_clients.stream_once, job.id):
        return InlineAudioAnswer(context, job, _RUN_BYTES, partial(_chunks, context, job, _base(request)))
    return JSONResponse(leave_out_none({"status": _state(job), "error": _error(job), "stream": []}))


@router.post("/cancel/{job_id}")
async def cancel(job_id: str, context: ContextDep, owner: Owner, _: _Model) -> dict[str, Any]:
    """Cancel a queued or running job. One that is cancelled already stays so."""
    try:
        job = await context.threads.run(context.store.jobs.cancel, _known_id(job_id), owner)
    except Conflict:
        job = await _own_job(context, owner, job_id)
        if job.status is not Status.CANCELLED:
            raise
    return {"id": job.id, "status": _state(job)}


@router.post("/retry/{job_id}")
async def retry(job_id: str, context: ContextDep, owner: Owner, _: _Model) -> dict[str, Any]:
    """Queue a job again that failed or took too long."""
    job = await _own_job(context, owner, job_id)
    if _state(job) not in _RETRYABLE:
        raise Conflict(f"Job {job.id} is {_state(job)}. Only jobs that are FAILED or TIMED_OUT can be retried")
    queue = context.args.queue
    retried = await context.threads.run(context.store.jobs.retry, job.id, queue.max_attempts, owner, limits=queue)
    return {"id": retried.id, "status": _state(retried)}


@router.post("/purge-queue")
async def purge_queue(context: ContextDep, owner: Owner, model: _Model) -> dict[str, Any]:
    """Cancel the caller's queued jobs of the endpoint."""
    removed = await context.threads.run(context.store.foreign_clients.purge, model, owner)
    return {"removed": removed, "status": "completed"}


@router.get("/health")
async def health(context: ContextDep, _: Owner, model: _Model) -> dict[str, Any]:
    """Jobs and workers of the endpoint by state."""
    return await context.threads.run(_health, context, model)


def _health(context: Context, model: str) -> dict[str, Any]:
    """The answer of /health. `completed` and `failed` count the jobs of all models that Sophia still keeps."""
    counts = context.store.foreign_clients.counts(model)
    by_state = context.store.backlog.counts()
    workers = of_model(living_workers(context), model)
    phases = [worker.phase for worker in workers]
    wanted = sum(decision.target for decision in decisions_by_model(context)[model])
    return {
        "jobs": {
            "completed": by_state[Status.SUCCEEDED],
            "failed": by_state[Status.FAILED],
            "inProgress": counts.running,
            "inQueue": counts.queued,
            "retried": counts.retried,
        },
        "workers": {
            "idle": phases.count(WorkerPhase.IDLE),
            "initializing": sum(map(is_starting, workers)),
            "ready": count_ready(workers),
            "running": phases.count(WorkerPhase.GENERATING),
            "throttled": max(wanted - len(workers), 0),
            "unhealthy": phases.count(WorkerPhase.FAILED),
        },
    }


async def _own_job(context: Context, owner: str, job_id: str) -> Job:
    """The caller's job. Raises NotFound, also for a job whose time to live is over."""
    job = await context.threads.run(context.store.jobs.get, _known_id(job_id), owner)
    if job.status is Status.EXPIRED:
        raise NotFound(f"Job {job.id} is gone: it did not end within its time to live (policy.ttl)")
    return job


def _known_id(job_id: str) -> str:
    try:
        return str(UUID(job_id))
    except ValueError:
        raise NotFound(f"There is no job {job_id[:100]}") from None


def _state(job: Job) -> str:
    if job.status is Status.FAILED and job.error is not None and job.error.code == RunLimitExceeded.code:
        return _TIMED_OUT
    return STATES[job.status]


def _error(job: Job) -> str | None:
    return job.error.message if job.status is Status.FAILED and job.error is not None else None


def _view(context: Context, job: Job, request: Request, most_bytes: int) -> Response:
    """RunPod's view of a job, with its songs as long as they fit into `most_bytes` and into the memory for such answers."""
    base = _base(request)
    return InlineAudioAnswer(context, job, most_bytes, lambda songs: _json(_fields(context, job, base, songs)))


def _chunks(context: Context, job: Job, base: str, with_audio: Collection[int]) -> bytes:
    """The answer of /stream with all songs of a job. Blocks."""
    songs = _songs(context, job, base, with_audio)
    return _json({"status": _state(job), "stream": [{"output": song} for song in songs]})


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _fields(context: Context, job: Job, base: str, with_audio: Collection[int]) -> dict[str, Any]:
    """RunPod's fields of a job; `with_audio` are the numbers of the songs whose audio is among them. Blocks."""
    started_at = job.started_at
    finished_at = job.finished_at
    return leave_out_none(
        {
            "id": job.id,
            "status": _state(job),
            "delayTime": _ms(started_at - job.created_at) if started_at else None,
            "executionTime": _ms(finished_at - started_at) if started_at and finished_at else None,
            "output": _output(context, job, base, with_audio),
            "error": _error(job),
            "workerId": job.worker,
        }
    )


def _ms(seconds: float) -> int:
    return max(round(1000 * seconds), 0)


def _output(context: Context, job: Job, base: str, with_audio: Collection[int]) -> dict[str, Any] | None:
    """The songs of a finished job, and the progress of a running one."""
    if job.status is Status.SUCCEEDED:
        return {"songs": _songs(context, job, base, with_audio)}
    if job.status is Status.RUNNING and job.progress:
        return Progress.model_validate(job.progress).model_dump(exclude_none=True)
    return None


def _songs(context: Context, job: Job, base: str, with_audio: Collection[int]) -> list[dict[str, Any]]:
    songs = []
    for number, file in enumerate(job.audio):
        song: dict[str, Any] = {
            "url": f"{base}/v1/jobs/{job.id}/audio/{number}",
            "format": file.format,
            "seconds": file.seconds,
            "seed": file.seed,
            "sample_rate": file.sample_rate,
        }
        if number in with_audio:
            with suppress(ArtifactsUnavailable, NotFound):
                song["audio_base64"] = base64.b64encode(context.artifacts.get(file.key)).decode()
        songs.append(song)
    return songs


def _base(request: Request) -> str:
    """The address under which the client reached Sophia, without a slash at its end."""
    return str(request.base_url).rstrip("/")


def _pong(job_id: str) -> dict[str, Any]:
    output = {"pong": True, "version": __version__}
    return {"id": job_id, "status": "COMPLETED", "delayTime": 0, "executionTime": 0, "output": output}


def _error_shape(problem: Problem) -> tuple[int, dict[str, Any]]:
    status: Literal[400, 500] | int = _STATUSES.get(problem.status, 400 if problem.status < 500 else 500)
    return status, {"error": problem.detail, "code": problem.code, "request_id": problem.request_id}


def _webhook(context: Context) -> WebhookForm:
    """The job as /status shows it, without an address of this service before the songs' paths. Only 200 counts as accepted."""
    return WebhookForm(
        render=lambda job: _webhook_body(context, job),
        is_accepted=lambda status: status == 200,
        retries_s=_WEBHOOK_RETRIES_S,
    )


def _webhook_body(context: Context, job: Job) -> dict[str, Any]:
    if job.status is not Status.EXPIRED:
        return _fields(context, job, "", songs_that_fit(job, _RUN_BYTES))
    return {"id": job.id, "status": _TIMED_OUT, "error": job.error.message if job.error else ""}


FAMILY: Final = Family(router, ("/v2/",), _error_shape, _webhook)
