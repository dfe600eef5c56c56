"""Replicate's predictions under /replicate/v1, for its clients."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request
from pydantic import BaseModel, ConfigDict

from serve_app import errors
from serve_app.api.auth import Owner
from serve_app.api.compat.family import Family
from serve_app.api.compat.translation import Translated, translated
from serve_app.api.context import Context, ContextDep
from serve_app.api.explanations import why_no_songs
from serve_app.api.field_errors import shortened, wrong_field
from serve_app.api.parameters import IdempotencyKey
from serve_app.api.signed_links import link_signer
from serve_app.api.submission import Origin, submit
from serve_app.api.views.problem import Problem
from serve_app.background.webhook_sender import WebhookForm
from serve_app.config import AppArgs
from serve_app.jobs import Job, Status
from serve_app.plurals import alternatives

_ALIASES: Final = ("ace-step", "ace-step-1.5")
"""Names of models there that stand for the default model. Every other name is that of a model here."""

_STATES: Final[dict[Status, str]] = {
    Status.QUEUED: "starting",
    Status.RUNNING: "processing",
    Status.SUCCEEDED: "succeeded",
    Status.FAILED: "failed",
    Status.CANCELLED: "canceled",
    Status.EXPIRED: "failed",
}

_LONGEST_WAIT_S: Final = 60
_PREFER_WAIT: Final = re.compile(r"\bwait\b(?:\s*=\s*(\d{1,6}))?")
_CANCEL_AFTER: Final = re.compile(r"(?:(\d{1,4})h)?(?:(\d{1,5})m)?(?:(\d{1,6})s?)?")
_WEBHOOK_RETRIES_S: Final = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
_PAGE: Final = 100


Address = Callable[[str], str]
"""Returns the address of a path."""


class PredictionRequest(BaseModel):
    """The body of the routes that make a prediction. `version` is the name of a model, also after an owner."""

    model_config = ConfigDict(extra="allow")

    input: dict[str, Any]
    version: str | None = None
    webhook: str | None = None
    webhook_events_filter: list[Literal["start", "output", "logs", "completed"]] | None = None

    @property
    def origin(self) -> Origin:
        """The origin of the job. Other fields, such as `stream`, become a warning: they have no effect."""
        ignored = [name for name, value in (self.model_extra or {}).items() if value]
        if not ignored:
            return Origin("replicate")
        return Origin("replicate", (f"These fields have no effect: {shortened(', '.join(sorted(ignored)))}.",))

    def translated(self, model: str | None, cancel_after_s: float | None) -> Translated:
        """The song that is asked for. Raises InvalidRequest."""
        decided: dict[str, tuple[str, Any]] = {"model": ("version", model)}
        if cancel_after_s is not None:
            decided["deadline_s"] = ("Cancel-After", cancel_after_s)
        if self.webhook:
            decided["webhook_url"] = ("webhook", self.webhook)
        events = self.webhook_events_filter
        if events and "completed" not in events:
            raise wrong_field(
                "webhook_events_filter", ", ".join(events), "must have 'completed', the only event that is sent"
            )
        return translated(self.input, "input", decided)


def _model(args: AppArgs, name: str) -> str | None:
    """The model of this name. Raises NotFound."""
    if name in args.models:
        return name
    if name in _ALIASES:
        return args.default_model
    raise errors.NotFound(f"There is no model {name[:100]!r}. Use {alternatives([*args.models])}")


async def _wait_s(prefer: Annotated[str, Header()] = "") -> int:
    found = _PREFER_WAIT.search(prefer)
    if found is None:
        return 0
    return min(int(found[1] or _LONGEST_WAIT_S), _LONGEST_WAIT_S)


async def _cancel_after_s(cancel_after: Annotated[str | None, Header()] = None) -> float | None:
    if cancel_after is None:
        return None
    found = _CANCEL_AFTER.fullmatch(cancel_after.strip())
    seconds = (
        sum(int(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True)) if found else 0
    )
    if not seconds:
        raise wrong_field("Cancel-After", cancel_after[:100], "must be a time such as 30s, 5m or 1h30m")
    return float(seconds)


class _Call:
    """What the routes that make a prediction have in common."""

    def __init__(
        self,
        *,
        request: Request,
        context: ContextDep,
        owner: Owner,
        wait_s: Annotated[int, Depends(_wait_s)],
        cancel_after_s: Annotated[float | None, Depends(_cancel_after_s)],
        idempotency_key: IdempotencyKey = None,
    ) -> None:
        self.request = request
        self.context = context
        self.owner = owner
        self.wait_s = wait_s
        self.cancel_after_s = cancel_after_s
        self.idempotency_key = idempotency_key

    async def prediction(self, body: PredictionRequest, name: str) -> dict[str, Any]:
        """Queue a job, and wait for it as long as is asked for. Who leaves may ask for it later, so it goes on."""
        context = self.context
        asked = body.translated(_model(context.args, name), self.cancel_after_s)
        with self._slot():
            with asked.errors_named_as_given():
                job, _ = await submit(context, asked.song, self.owner, self.idempotency_key, origin=body.origin)
            if self.wait_s:
                job = await context.watcher.finished(job, self.wait_s) or job
        view = await _view(self.request, context, self.owner, job)
        return view if job.status.final else {**view, "status": "starting"}  # the clients take any other for its end

    def _slot(self) -> AbstractContextManager[None]:
        return self.context.limits.waits.hold(self.owner) if self.wait_s else nullcontext()


_CallDep = Annotated[_Call, Depends()]

router = APIRouter(prefix="/replicate/v1", include_in_schema=False)


@router.post("/predictions", status_code=201)
async def predict_version(body: PredictionRequest, call: _CallDep) -> dict[str, Any]:
    """Make songs with the model that `version` names."""
    if body.version is None:
        raise wrong_field("version", "", "is required")
    return await call.prediction(body, body.version.rpartition("/")[2].rpartition(":")[2])


@router.post("/models/{model_owner}/{name}/predictions", status_code=201)
async def predict(name: str, body: PredictionRequest, call: _CallDep) -> dict[str, Any]:
    """Make songs with a model."""
    return await call.prediction(body, name)


@router.get("/models/{model_owner}/{name}/versions/{version}")
async def version(name: str, version: str, context: ContextDep, _: Owner) -> dict[str, Any]:
    """The only version of a model. Its output is a list, which is complete at once."""
    _model(context.args, name)
    schemas = {"Output": {"type": "array", "items": {"type": "string", "format": "uri"}, "title": "Output"}}
    return {
        "id": version,
        "created_at": datetime.fromtimestamp(0, UTC).isoformat(),
        "cog_version": "",
        "openapi_schema": {"components": {"schemas": schemas}},
    }


@router.get("/predictions")
async def predictions(
    request: Request, context: ContextDep, owner: Owner, cursor: Annotated[UUID | None, Query()] = None
) -> dict[str, Any]:
    """The caller's jobs, newest first."""
    before = str(cursor) if cursor else None
    found = await context.threads.run(context.store.jobs.page, owner=owner, before=before, limit=_PAGE + 1)
    page = found[:_PAGE]
    following = f"{_base(request)}/replicate/v1/predictions?cursor={page[-1].id}" if len(found) > _PAGE else None
    return {
        "previous": None,
        "next": following,
        "results": [await _view(request, context, owner, job) for job in page],
    }


@router.get("/predictions/{prediction_id}")
async def prediction(prediction_id: str, request: Request, context: ContextDep, owner: Owner) -> dict[str, Any]:
    """A job."""
    job = await context.threads.run(context.store.jobs.get, _known_id(prediction_id), owner)
    return await _view(request, context, owner, job)


@router.post("/predictions/{prediction_id}/cancel")
async def cancel(prediction_id: str, request: Request, context: ContextDep, owner: Owner) -> dict[str, Any]:
    """Cancel a job. One that has ended stays as it is."""
    job_id = _known_id(prediction_id)
    try:
        job = await context.threads.run(context.store.jobs.cancel, job_id, owner)
    except errors.Conflict:
        job = await context.threads.run(context.store.jobs.get, job_id, owner)
    return await _view(request, context, owner, job)


def _known_id(prediction_id: str) -> str:
    try:
        return str(UUID(prediction_id))
    except ValueError:
        raise errors.NotFound(f"There is no prediction {prediction_id[:100]}") from None


def _base(request: Request) -> str:
    return str(request.base_url).rstrip("/")


async def _view(request: Request, context: Context, owner: str, job: Job) -> dict[str, Any]:
    """A job with signed links to its songs: the clients fetch them without a key."""
    signer = await link_signer(context, owner)
    base = _base(request)
    return _prediction(job, base, lambda path: base + signer.link(path))


def _prediction(job: Job, base: str, address: Address) -> dict[str, Any]:
    """Replicate's view of a job."""
    seconds = job.finished_at - job.started_at if job.started_at and job.finished_at else None
    url = f"{base}/replicate/v1/predictions/{job.id}"
    has_songs = job.status is Status.SUCCEEDED and job.audio_gone_at is None
    has_failed = job.status in (Status.FAILED, Status.EXPIRED)
    return {
        "id": job.id,
        "model": f"sophia/{job.model}",
        "version": job.model,
        "status": _STATES[job.status],
        "input": job.request.model_dump(mode="json", exclude_defaults=True, exclude={"model", "webhook_url"}),
        "output": [address(f"/v1/jobs/{job.id}/audio/{number}") for number in range(len(job.audio))]
        if has_songs
        else None,
        "logs": "\n".join(job.warnings),
        "error": why_no_songs(job) if has_failed else None,
        "metrics": {} if seconds is None else {"predict_time": seconds},
        "data_removed": job.audio_gone_at is not None,
        "created_at": _time(job.created_at),
        "started_at": _time(job.started_at),
        "completed_at": _time(job.finished_at),
        "urls": {"get": url, "cancel": f"{url}/cancel", "web": url},
    }


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


def _error_shape(problem: Problem) -> tuple[int, dict[str, Any]]:
    return problem.status, {**problem.model_dump(exclude_none=True), "type": problem.code}


def _webhook(_: Context) -> WebhookForm:
    """The prediction, without an address of this service before the paths. Replicate signs its webhooks as Sophia does."""
    return WebhookForm(
        render=lambda job: _prediction(job, "", lambda path: path),
        is_accepted=lambda status: 200 <= status < 300,
        retries_s=_WEBHOOK_RETRIES_S,
    )


FAMILY: Final = Family(router, ("/replicate/",), _error_shape, _webhook)
