"""Is it there, can it play, how is it doing. `/ping` touches nothing but memory."""

import asyncio
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from serve_app import __version__, errors
from serve_app.api.context import Context, Operator, Owner, Parts
from serve_app.api.fleet_views import (
    BreakerView,
    ClusterView,
    CostView,
    Health,
    ModelList,
    ModelView,
    Pong,
    Ready,
    ScaleView,
    WorkerView,
)
from serve_app.api.job_viewer import moment
from serve_app.api.problems import ASKING, responses
from serve_app.api.reasons import breaker_of, is_coming, is_ready, living, phase_in_words, why_no_place, why_not_ready
from serve_app.api.threads import Flight
from serve_app.api.views import JobError, UsageView
from serve_app.config import ModelArgs, Variant
from serve_app.music import MEDIA_TYPES, TASKS, VARIANT_DEFAULTS, bounds_of
from serve_app.store import WorkerRow
from serve_app.store.costs import Account
from serve_app.store.decisions import Decision
from serve_app.store.postgresql import POOLER

router = APIRouter()

COST_HOURS: Final = 24
"""Health tells what was spent in so many hours; `sophia cost` tells it for any time."""


@router.get("/ping", summary="Ping", tags=["health"])
async def ping(parts: Parts) -> Pong:
    """Answers in milliseconds, whatever the workers do."""
    return Pong(version=__version__, commit=parts.commit)


@router.get("/healthz", summary="Alive?", tags=["health"])
async def healthz(parts: Parts) -> Pong:
    """The API process lives."""
    return Pong(version=__version__, commit=parts.commit)


@router.get(
    "/readyz",
    summary="Ready?",
    tags=["health"],
    responses={
        503: {"model": Ready, "description": "A model has no worker that can generate, or no song can be stored"},
        **responses(errors.MethodNotAllowed),
    },
)
async def readyz(parts: Parts, request: Request, response: Response) -> Ready:
    """At least one worker of each model can generate, or none is wanted, and songs can be stored."""
    limit_s = parts.args.api.ready_timeout_s
    look: Flight[Ready] = request.app.state.readiness
    try:
        ready = await asyncio.wait_for(look.join(), limit_s)
    except TimeoutError:
        ready = Ready(ready=False, reason=f"the job database did not answer within {limit_s:g} s")
    except errors.StoreUnavailable as error:
        ready = Ready(ready=False, reason=error.message)
    if not ready.ready:
        response.status_code = 503
    return ready


def readiness(parts: Context) -> Ready:
    """What /readyz tells. Raises StoreUnavailable. Blocks."""
    workers = living(parts)
    failure = parts.storage.failure()
    if failure is not None:
        return Ready(ready=False, reason=failure.public_why)
    missing = [name for name in _wanted(parts) if not _ready(workers, name)]
    if missing:
        return Ready(ready=False, reason="; ".join(_why_not(parts, workers, name) for name in missing))
    return Ready(ready=True, reason=f"{sum(map(is_ready, workers))} workers can generate")


@router.get(
    "/v1/health",
    summary="The whole service",
    tags=["health"],
    responses=responses(*ASKING),
)
async def health(parts: Parts, owner: Owner, operator: Operator) -> Health:
    """Jobs by state, oldest wait, each worker's phase with its progress and last error, scale and why.

    One of several API keys sees neither the job ids of others nor what songs cost, unless `auth.operators` names it.
    """
    whole = await parts.work.run(_health, parts)
    return whole if operator else await parts.work.run(_without_others, parts, whole, owner)


def _without_others(parts: Context, whole: Health, owner: str) -> Health:
    """What a key may see that is no operator's: no job ids of others, no costs, no names of folders and buckets."""
    found = parts.store.jobs.get_many([worker.job for worker in whole.workers if worker.job])
    own = {job.id for job in found.values() if job.owner == owner}
    workers = [worker.model_copy(update={"job": worker.job if worker.job in own else None}) for worker in whole.workers]
    failure = parts.storage.failure()
    notices = [f"No song can be stored: {failure.public_why}"] if failure else []
    notices += _noise(parts, living(parts))
    return whole.model_copy(update={"workers": workers, "costs": {}, "notices": notices})


def _health(parts: Context) -> Health:
    workers = living(parts)
    problems = parts.store.supervisor.problems()
    decisions = _decisions(parts)
    scale = {name: _scale(parts, workers, name, decisions[name]) for name in parts.args.models}
    return Health(
        status="degraded" if parts.storage.failure() else _status(scale, _wanted(parts), problems),
        version=__version__,
        commit=parts.commit,
        jobs=parts.store.backlog.counts(),  # type: ignore[arg-type]  # the keys are the states
        oldest_wait_s=parts.store.backlog.oldest_wait_s(),
        workers=[_worker(parts, row) for row in workers],
        breakers={name: _breaker(parts, name) for name in parts.args.models},
        scale=scale,
        costs={
            name: _cost(account, parts.args.models.get(name))
            for name, account in parts.store.costs.accounts(COST_HOURS).items()
        },
        notices=[*problems, *_notices(parts, workers)],
    )


@router.get(
    "/v1/models",
    summary="What can play",
    tags=["models"],
    responses=responses(*ASKING),
)
async def models(parts: Parts, owner: Owner) -> ModelList:
    """The served models, what each can do, and the limits."""
    return await parts.work.run(_models, parts)


def _models(parts: Context) -> ModelList:
    workers = living(parts)
    return ModelList(
        models=[_model(parts, workers, name, model) for name, model in parts.args.models.items()],
        formats=list(MEDIA_TYPES),  # type: ignore[arg-type]  # its keys are the formats
        max_duration_s=bounds_of("duration")["maximum"],
        max_variations=bounds_of("variations")["maximum"],
    )


@router.get(
    "/v1/usage",
    summary="What you have waiting",
    tags=["jobs"],
    responses=responses(*ASKING),
)
async def usage(parts: Parts, owner: Owner) -> UsageView:
    """Your API key's part of the queue, and how much of it you may have."""
    return await parts.work.run(_usage, parts, owner)


def _usage(parts: Context, owner: str) -> UsageView:
    use = parts.store.backlog.use(owner)
    limits = parts.args.queue
    return UsageView(
        queued_jobs=use.jobs,
        queued_audio_s=round(use.audio_s, 3),
        max_queued_jobs=limits.max_owner_jobs,
        max_queued_audio_s=limits.max_owner_audio_s,
        pending_webhooks=parts.store.webhooks.pending(owner),
        max_pending_webhooks=limits.max_owner_webhooks,
        max_waits=parts.args.api.waits_per_key,
        max_streams=parts.args.api.streams_per_key,
        max_requests_per_s=parts.args.api.requests_per_s,
    )


def _wanted(parts: Context) -> set[str]:
    """The models that should have a worker now: not those that are asleep by design, but those that an
    open breaker or an operator's pause keeps from having one."""
    decisions = _decisions(parts)
    paused = parts.store.pauses.all()
    return {
        name
        for name in parts.args.models
        if any(decision.target for decision in decisions[name]) or breaker_of(parts, name).is_open or name in paused
    }


def _ready(workers: list[WorkerRow], model: str) -> list[WorkerRow]:
    return [worker for worker in workers if worker.model == model and is_ready(worker)]


def _why_not(parts: Context, workers: list[WorkerRow], model: str) -> str:
    ours = [worker for worker in workers if worker.model == model]
    return f"{model}: {why_not_ready(parts, model, ours, parts.store.pauses.all().get(model))}"


def _decisions(parts: Context) -> dict[str, list[Decision]]:
    """What is wanted of each model of ours in each living cluster, in this one first."""
    here = parts.args.cluster_name or ""
    found = parts.store.decisions.in_force(here)
    decisions: dict[str, list[Decision]] = {}
    for name, model in parts.args.models.items():
        decisions[name] = found.get(name, [])
        if not decisions[name] or decisions[name][0].cluster != here:
            least = model.scaling.min_workers
            decisions[name].insert(0, Decision(least, f"models.{name}.scaling.min_workers is {least}", here))
    return decisions


def _scale(parts: Context, workers: list[WorkerRow], name: str, decisions: list[Decision]) -> ScaleView:
    ours = [worker for worker in workers if worker.model == name]
    here = decisions[0].cluster
    clusters = [
        _cluster([one for one in ours if (one.cluster or here) == decision.cluster], decision) for decision in decisions
    ]
    return ScaleView(
        ready=len(_ready(workers, name)),
        starting=sum(map(is_coming, ours)),
        wanted=sum(cluster.wanted for cluster in clusters),
        pending=sum(cluster.pending for cluster in clusters),
        pending_for=(why_no_place(parts, name) or "Ray is starting them") if clusters[0].pending else None,
        reason=decisions[0].reason,
        clusters=clusters,
    )


def _cluster(workers: list[WorkerRow], decision: Decision) -> ClusterView:
    return ClusterView(
        name=decision.cluster,
        ready=sum(map(is_ready, workers)),
        wanted=decision.target,
        pending=max(0, decision.target - len(workers)),
        reason=decision.reason,
    )


def _status(scale: dict[str, ScaleView], wanted: set[str], problems: list[str]) -> Any:
    lacking = [view for name, view in scale.items() if name in wanted and not view.ready]
    if not lacking:
        return "degraded" if problems else "ok"
    return "starting" if all(view.starting for view in lacking) else "degraded"


def _worker(parts: Context, row: WorkerRow) -> WorkerView:
    return WorkerView(
        id=row.id,
        model=row.model,
        node=row.node,
        cluster=row.cluster,
        device=row.device,
        phase=row.phase,
        since=moment(row.phase_since),
        progress=row.progress,
        detail=phase_in_words(parts, row),
        error=JobError(code=row.error["code"], message=row.error["message"]) if row.error else None,
        job=row.job,
        seen_at=moment(row.seen_at),
    )


def _breaker(parts: Context, model: str) -> BreakerView:
    found = breaker_of(parts, model)
    return BreakerView(
        open=found.is_open,
        load_runs=found.runs,
        hosts=sorted(
            {host.partition("/")[0] for host in found.hosts}
        ),  # what follows is for us: boot and PID namespace
        since=moment(found.since) if found.since else None,
        error=JobError(code=found.code, message=found.message) if found.runs else None,
    )


def _cost(account: Account, model: ModelArgs | None) -> CostView:
    priced = bool(account.use.cost) or bool(model and model.price_per_hour)
    money = {
        "cost": account.use.cost,
        "per_song": account.per_song,
        "lost_to_loading": account.use.loading_cost,
        "lost_to_idle": account.use.idle_cost,
        "lost_without_song": account.no_song_cost,
    }
    return CostView(
        hours=COST_HOURS,
        loading_s=round(account.use.loading_s, 1),
        idle_s=round(account.use.idle_s, 1),
        generating_s=round(account.use.generating_s, 1),
        songs=account.songs,
        **{name: round(value, 6) if priced and value is not None else None for name, value in money.items()},
    )


def _facts(workers: list[WorkerRow], model: str) -> dict[str, Any]:
    known = [worker.facts for worker in workers if worker.model == model and worker.facts]
    return known[-1] if known else {}


def _notices(parts: Context, workers: list[WorkerRow]) -> list[str]:
    failure = parts.storage.failure()
    refusal = parts.store.installation.refusal()
    told = [f"No song can be stored. {failure.message}"] if failure else []
    told += [words for words in (refusal, parts.store.installation.held_back()) if words]
    told += [parts.store.database.newer_schema] if parts.store.database.newer_schema else []
    told += [POOLER] if parts.store.database.is_pooled else []
    return [*told, *_noise(parts, workers)]


def _noise(parts: Context, workers: list[WorkerRow]) -> list[str]:
    return [
        f"{name} plays {model.source}: random weights, so noise, for trying Sophia out; set models.{name}.source to a checkpoint"
        for name, model in parts.args.models.items()
        if _is_noise(workers, name, model)
    ]


def _is_noise(workers: list[WorkerRow], name: str, model: ModelArgs) -> bool:
    return bool(_facts(workers, name).get("noise", model.source in ("embedded", "simulated")))


def _model(parts: Context, workers: list[WorkerRow], name: str, model: ModelArgs) -> ModelView:
    variant: Variant | None = _facts(workers, name).get("variant") or model.variant
    return ModelView(
        name=name,
        is_default=name == parts.args.default_model,
        source=model.source,
        revision=model.revision,
        variant=variant,
        tasks=list(TASKS[variant]) if variant else ["text2music"],
        defaults=VARIANT_DEFAULTS[variant] if variant else None,
        ready_workers=len(_ready(workers, name)),
        noise=_is_noise(workers, name, model),
    )
