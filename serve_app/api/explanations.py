"""Sentences for users: why a job waits or has no songs, and why a model has no worker that can generate.

Functions that take a context block.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from serve_app.api.context import Context
from serve_app.api.fleet import breaker_of, is_ready, is_starting
from serve_app.api.placement import why_not_placed
from serve_app.errors import DeviceLost
from serve_app.jobs import Job, Status
from serve_app.plurals import counted
from serve_app.store import Breaker, WorkerRow
from serve_app.store.decisions import Decision
from serve_app.store.pauses import Pause
from serve_app.store.places import FAR
from serve_app.store.workers import cannot_store

_ENDED: Final[Mapping[Status, str]] = {
    Status.FAILED: "failed",
    Status.CANCELLED: "was cancelled",
    Status.EXPIRED: "expired",
}
"""How a job without songs has ended, as a verb."""


def why_no_songs(job: Job) -> str:
    """Why a job that has not succeeded has no songs, with its error, and what can be done."""
    if not job.status.final:
        return f"it is {job.status}. GET /v1/jobs/{job.id}/events tells when it has ended"
    reason = f" ({job.error.code}): {job.error.message.rstrip('.')}" if job.error else ""
    return f"it {_ENDED[job.status]}{reason}. POST /v1/jobs/{job.id}/retry runs it again"


def why_waiting(context: Context, model: str, ahead: int, workers: list[WorkerRow], pause: Pause | None) -> str:
    """Why a queued job waits. `ahead` counts the jobs before it; `workers` and `pause` are those of its model."""
    elsewhere = [] if model in context.args.models else _decisions_elsewhere(context, model)
    if model not in context.args.models and not elsewhere:
        return (
            f"the model {model!r} is no longer in this service's configuration, and no other cluster on this queue serves it. The "
            "job expires at its deadline; cancel it and submit it to another model (GET /v1/models)"
        )
    if pause is not None:
        return _paused(pause)
    ready = [worker for worker in workers if is_ready(worker)]
    if ready:
        return f"{_jobs_ahead(ahead)} before this one; {_busy(ready)}"
    if elsewhere:
        return f"another cluster serves this model and has no worker for it yet: {elsewhere[0].reason}"
    return why_not_ready(context, model, workers, pause)


def _jobs_ahead(ahead: int) -> str:
    if ahead == 0:
        return "no job"
    return f"at least {counted(ahead, 'job')}" if ahead == FAR else counted(ahead, "job")


def _busy(ready: list[WorkerRow]) -> str:
    """How many of the workers that can generate have a job."""
    busy = sum(worker.job is not None for worker in ready)
    if len(ready) == 1:
        return "the only worker is busy" if busy else "the only worker is free"
    return f"{busy} of {len(ready)} workers are busy"


def _decisions_elsewhere(context: Context, model: str) -> list[Decision]:
    """The scaling decisions of the other living clusters on this queue."""
    here = context.args.cluster_name or ""
    decisions = context.store.decisions.in_force(here).get(model, [])
    return [decision for decision in decisions if decision.cluster != here]


def why_not_ready(context: Context, model: str, workers: list[WorkerRow], pause: Pause | None) -> str:
    """Why a model has no worker that can generate. `workers` and `pause` are those of the model."""
    if pause is not None:
        return f"{_paused(pause)}; `sophia resume {model}` ends the pause"
    breaker = breaker_of(context, model)
    if breaker.is_open:
        return _breaker_open(context, model, breaker)
    return _storage_refuses(workers) or _starting(context, workers) or _no_worker(context, model, breaker)


def _storage_refuses(workers: list[WorkerRow]) -> str | None:
    refused = [worker for worker in workers if cannot_store(worker)]
    if not refused:
        return None
    return f"the workers claim no jobs because they cannot store songs: {(refused[0].error or {}).get('public')}"


def _starting(context: Context, workers: list[WorkerRow]) -> str | None:
    starting = [worker for worker in workers if is_starting(worker)]
    return f"workers are starting: {describe_phase(context, starting[0])}" if starting else None


def _no_worker(context: Context, model: str, breaker: Breaker) -> str:
    if breaker.runs:
        return f"{_failures(breaker)}; retrying"
    return why_not_placed(context, model) or "no worker of this model is running yet"


def _breaker_open(context: Context, model: str, breaker: Breaker) -> str:
    trial_s = context.args.breaker.trial_s
    trial = "" if breaker.everywhere else f", except for one trial {trial_s:g} s after the last failure"
    return (
        f"{_failures(breaker)}; not retrying until a changed configuration is deployed or an operator runs "
        f"`sophia reset {model}`{trial}"
    )


def _failures(breaker: Breaker) -> str:
    what = "the device fails under jobs" if breaker.code == DeviceLost.code else "the model cannot be loaded"
    return f"{what}: {breaker.message} {counted(breaker.runs, 'attempt')} since {_timestamp(breaker.since)}"


def _paused(pause: Pause) -> str:
    return f"paused by the operator since {_timestamp(pause.since)}: {pause.reason}"


def describe_phase(context: Context, worker: WorkerRow) -> str:
    """What the worker is doing, or that a starting worker has made no progress for `breaker.hang_s` seconds."""
    detail = worker.detail or worker.phase
    if is_starting(worker) and worker.still_s > context.args.breaker.hang_s:
        return f"hung: no progress for {worker.still_s:.0f} s in phase {worker.phase} ({detail})"
    return detail


def _timestamp(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds or 0, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
