"""fal's API for its clients: synchronous calls under /fal/run, and the queue under /fal/queue.

Its paths begin with the owner and the name of an app, which could be anything, so they have a prefix.
"""

import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Final, NamedTuple
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse

from serve_app import errors
from serve_app.api.auth import Owner
from serve_app.api.compat.family import Family, leave_out_none
from serve_app.api.compat.translation import Translated, translated
from serve_app.api.context import Context, ContextDep
from serve_app.api.events import KEEPALIVE_S, EventStream
from serve_app.api.field_errors import shortened, wrong_field
from serve_app.api.file_answer import check_is_kept
from serve_app.api.file_names import file_name
from serve_app.api.signed_links import link_signer
from serve_app.api.submission import Origin
from serve_app.api.views.problem import Problem
from serve_app.api.waiting_calls import finished_job, succeeded
from serve_app.api.watch import Change
from serve_app.background.webhook_sender import WebhookForm
from serve_app.jobs import Job, Status
from serve_app.music import MEDIA_TYPES, spellings
from serve_app.plurals import alternatives

_NAME: Final = "fal"
_APP: Final = "ace-step"
"""fal's app, which stands for the default model. Every other app has the name of a model."""

_PATHS: Final = ("", "prompt-to-audio")
"""The ways to call fal's app that are songs from words; their fields mean the same here."""

_OWN_NAMES: Final = {
    "number_of_steps": "steps",
    "scheduler": "sampler",
    "guidance_type": "guidance_mode",
    "audio_url": "source",
}
"""Sophia's fields by fal's names for them, where no other service has the name."""

_IGNORED: Final = (
    "granularity_scale",
    "guidance_interval",
    "guidance_interval_decay",
    "minimum_guidance_scale",
    "tag_guidance_scale",
    "lyric_guidance_scale",
)
"""Settings of the first ACE-Step, which version 1.5 does not have."""

_PRIORITIES: Final[dict[str, dict[str, int]]] = {"normal": {}, "low": {"priority": 0}}
_STATUSES: Final = {409: 400, 504: 500}
"""Statuses that the clients would take as a reason to repeat the request, and what they get instead."""

_WEBHOOK_RETRIES_S: Final = (10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0, 2560.0)

Address = Callable[[str], str]
"""Returns the address of a path."""


async def _model(owner_name: str, app: str, context: ContextDep, _: Owner, path: str = "") -> str | None:
    """The model that an app stands for. Raises NotFound."""
    args = context.args
    if path not in _PATHS:
        raise errors.NotFound(
            f"There is no {path[:100]!r} of {owner_name[:50]}/{app[:50]}. Use 'prompt-to-audio', or nothing"
        )
    if app in args.models:
        return app
    if app == _APP:
        return args.default_model
    apps = [f"{owner_name[:50]}/{name}" for name in dict.fromkeys((_APP, *args.models))]
    raise errors.NotFound(f"There is no app {owner_name[:50]}/{app[:50]}. Use {alternatives(apps)}")


_Model = Annotated[str | None, Depends(_model)]


async def _job(request_id: str, context: ContextDep, owner: Owner, _: _Model) -> Job:
    """The caller's job. Raises NotFound."""
    return await context.threads.run(context.store.jobs.get, _known_id(request_id), owner)


_OwnJob = Annotated[Job, Depends(_job)]


async def _priority(x_fal_queue_priority: Annotated[str, Header()] = "normal") -> dict[str, tuple[str, Any]]:
    fields = _PRIORITIES.get(x_fal_queue_priority)
    if fields is None:
        raise errors.InvalidRequest(f"X-Fal-Queue-Priority: must be {alternatives(_PRIORITIES)}")
    return {name: ("X-Fal-Queue-Priority", value) for name, value in fields.items()}


_Priority = Annotated[dict[str, tuple[str, Any]], Depends(_priority)]

router = APIRouter(prefix="/fal", include_in_schema=False)


class _Asked(NamedTuple):
    """The song that is asked for, and what of the request has no effect."""

    translated: Translated
    origin: Origin


async def _asked(
    *,
    given: Annotated[dict[str, Any], Body()],
    model: _Model,
    priority: _Priority,
    x_fal_request_timeout: Annotated[str | None, Header()] = None,
    fal_webhook: Annotated[str | None, Query()] = None,
) -> _Asked:
    """Raises InvalidRequest."""
    ignored = [name for name in given if name in _IGNORED]
    fields = {name: value for name, value in given.items() if name not in _IGNORED}
    if _is_instrumental(fields.pop("instrumental", None)):
        fields["lyrics"] = "[Instrumental]"
    if x_fal_request_timeout is not None:
        ignored.append("X-Fal-Request-Timeout")
    decided = {"model": ("app", model), **priority}
    if fal_webhook:
        decided["webhook_url"] = ("fal_webhook", fal_webhook)
    asked = translated(fields, "", decided, _OWN_NAMES)
    return _Asked(asked, Origin(_NAME, tuple(f"{name} is ignored: it cannot be honoured." for name in ignored)))


def _is_instrumental(value: Any) -> bool:
    """Raises InvalidRequest."""
    wanted = spellings.switch(value)
    if wanted not in (True, False, None):
        raise wrong_field("instrumental", shortened(value), "must be true or false")
    return bool(wanted)


_AskedSong = Annotated[_Asked, Depends(_asked)]


@router.post("/run/{owner_name}/{app}")
@router.post("/run/{owner_name}/{app}/{path:path}")
async def run(request: Request, context: ContextDep, owner: Owner, asked: _AskedSong) -> Response:
    """Make a song, and answer with its address."""
    with asked.translated.errors_named_as_given():
        job = await finished_job(request, context, asked.translated.song, owner, origin=asked.origin)
    return await _result(request, context, owner, succeeded(job))


@router.post("/queue/{owner_name}/{app}")
@router.post("/queue/{owner_name}/{app}/{path:path}")
async def submit(request: Request, context: ContextDep, owner: Owner, asked: _AskedSong) -> Response:
    """Queue a job.

    The clients repeat this request if the connection is lost before the answer. So it is a waiting call that waits for nothing: a
    repetition takes over the job of a caller who has left.
    """
    with asked.translated.errors_named_as_given():
        job = await finished_job(request, context, asked.translated.song, owner, origin=asked.origin, timeout_s=0)
    if job is None:
        raise errors.NotFound("The job was deleted")
    view = await context.threads.run(_status, context, job, _queue_address(request), 0)
    return _answer(job, {"queue_position": 0, **view})


@router.get("/queue/{owner_name}/{app}/requests/{request_id}/status")
async def status(request: Request, context: ContextDep, job: _OwnJob, logs: bool = False) -> Response:
    """Where a job stands."""
    view = await context.threads.run(_status, context, job, _queue_address(request), 0 if logs else None)
    return _answer(job, view, 200 if job.status.final else 202)


@router.get("/queue/{owner_name}/{app}/requests/{request_id}/status/stream")
async def stream(request: Request, context: ContextDep, job: _OwnJob, logs: bool = False) -> Response:
    """Where a job stands, whenever that changes, as server-sent events until it has ended."""
    events = _events(context, job, _queue_address(request), logs)
    return EventStream(events, context.limits.streams.hold(job.owner))


@router.get("/queue/{owner_name}/{app}/requests/{request_id}")
async def result(request: Request, context: ContextDep, owner: Owner, job: _OwnJob) -> Response:
    """The songs of a job. Raises BadRequest before it has ended, and the error with which it has failed."""
    if not job.status.final:
        raise errors.BadRequest("The request is still in progress")
    return await _result(request, context, owner, succeeded(job))


@router.put("/queue/{owner_name}/{app}/requests/{request_id}/cancel")
async def cancel(request_id: str, context: ContextDep, owner: Owner, _: _Model) -> Response:
    """Cancel a job that has not ended."""
    try:
        await context.threads.run(context.store.jobs.cancel, _known_id(request_id), owner)
    except errors.NotFound as error:
        return JSONResponse({"status": "NOT_FOUND", "detail": error.public}, 404)
    except errors.Conflict as error:
        return JSONResponse({"status": "ALREADY_COMPLETED", "detail": error.public}, 400)
    return JSONResponse({"status": "CANCELLATION_REQUESTED"}, 202)


def _known_id(request_id: str) -> str:
    try:
        return str(UUID(request_id))
    except ValueError:
        raise errors.NotFound(f"There is no request {request_id[:100]}") from None


def _answer(job: Job, body: Any, status_code: int = 200) -> Response:
    return JSONResponse(body, status_code, {"X-Fal-Request-Id": job.id})


async def _result(request: Request, context: Context, owner: str, job: Job) -> Response:
    """A job's songs, with signed links: the clients fetch them without a key. Raises AudioExpired."""
    check_is_kept(job)
    signer = await link_signer(context, owner)
    base = str(request.base_url).rstrip("/")
    return _answer(job, _output(job, lambda path: base + signer.link(path)))


def _output(job: Job, address: Address) -> dict[str, Any]:
    songs = [
        {
            "url": address(f"/v1/jobs/{job.id}/audio/{number}"),
            "content_type": MEDIA_TYPES[file.format].partition(";")[0],
            "file_name": file_name(job, file),
            "file_size": file.bytes,
            "duration": file.seconds,
            "seed": file.seed,
        }
        for number, file in enumerate(job.audio)
    ]
    return {
        "audio": songs[0],
        "audios": songs,
        "seed": job.audio[0].seed,
        "tags": job.request.prompt,
        "lyrics": job.request.lyrics,
    }


def _queue_address(request: Request) -> str:
    """The address of the requests of the app that is called, from the beginning of the path."""
    app = "/".join(request.path_params[part] for part in ("owner_name", "app"))
    return f"{str(request.base_url).rstrip('/')}/fal/queue/{app}/requests"


def _status(context: Context, job: Job, address: str, first_log: int | None) -> dict[str, Any]:
    """fal's view of where a job stands, with its logs from `first_log` on; none for None. Blocks."""
    base = f"{address}/{job.id}"
    view: dict[str, Any] = {
        "request_id": job.id,
        "response_url": base,
        "status_url": f"{base}/status",
        "cancel_url": f"{base}/cancel",
        "logs": None if first_log is None else _logs(job)[first_log:],
    }
    if job.status is Status.QUEUED:
        place = context.store.backlog.places([job]).get(job.id)
        return {**view, "status": "IN_QUEUE", "queue_position": place.ahead if place else 0}
    if job.status is Status.RUNNING:
        return {**view, "status": "IN_PROGRESS"}
    seconds = job.finished_at - job.started_at if job.started_at and job.finished_at else None
    return {**view, "status": "COMPLETED", "metrics": leave_out_none({"inference_time": seconds}), **_failure(job)}


def _logs(job: Job) -> list[dict[str, str]]:
    return [{"message": warning, "level": "WARN", "source": "sophia", "timestamp": ""} for warning in job.warnings]


def _failure(job: Job) -> dict[str, str]:
    """The error of a job that has ended without songs; empty if it has any."""
    try:
        succeeded(job)
    except errors.SophiaError as error:
        return {"error": error.public, "error_type": error.code}
    return {}


async def _events(context: Context, job: Job, address: str, with_logs: bool) -> AsyncIterator[bytes]:
    """Yield events until the job has ended or is deleted, the caller's key is revoked, or the service stops."""
    change: Change | None = Change(job)
    sent = 0
    while change is not None:
        job = change.job
        view = await context.threads.run(_status, context, job, address, sent if with_logs else None)
        sent = len(job.warnings)
        yield f"data: {json.dumps(view)}\n\n".encode()
        if job.status.final:
            return
        try:
            change = await context.watcher.changed(job, KEEPALIVE_S)
        except TimeoutError:
            continue  # its place in the queue may have changed, and an idle stream would be closed on the way
        except (errors.ServiceStopping, errors.Unauthorized):
            return


def _error_shape(problem: Problem) -> tuple[int, dict[str, Any]]:
    """fal's errors: a text, or one entry for each wrong field."""
    detail: Any = problem.detail
    if problem.errors:
        detail = [
            {
                "loc": ["body", *wrong.field.split(".")],
                "msg": wrong.message,
                "type": "value_error",
                "input": wrong.value,
            }
            for wrong in problem.errors
        ]
    body = {"detail": detail, "message": problem.detail, "error_type": problem.code, "request_id": problem.request_id}
    return _STATUSES.get(problem.status, problem.status), body


def _webhook(_: Context) -> WebhookForm:
    """fal's body, without an address of this service before the songs' paths. It is signed as all of Sophia's webhooks are."""
    return WebhookForm(
        render=_webhook_body, is_accepted=lambda status: 200 <= status < 300, retries_s=_WEBHOOK_RETRIES_S
    )


def _webhook_body(job: Job) -> dict[str, Any]:
    failure = _failure(job)
    return {
        "request_id": job.id,
        "gateway_request_id": job.id,
        "status": "ERROR" if failure else "OK",
        "payload": {"detail": failure["error"]} if failure else _output(job, lambda path: path),
        "error": failure.get("error"),
    }


FAMILY: Final = Family(router, ("/fal/",), _error_shape, _webhook)
