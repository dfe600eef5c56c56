"""Builds the answer of /v1/health from the store. Every function that takes a context blocks."""

from typing import Final, Literal

from serve_app import __version__
from serve_app.api.context import Context
from serve_app.api.explanations import describe_phase
from serve_app.api.fleet import (
    breaker_of,
    count_ready,
    decisions_by_model,
    is_starting,
    living_workers,
    models_that_need_workers,
    of_model,
)
from serve_app.api.job_presenter import utc
from serve_app.api.notices import operator_notices, public_notices
from serve_app.api.placement import why_not_placed
from serve_app.api.views.health import (
    BreakerView,
    ClusterView,
    CostView,
    Health,
    ScaleView,
    WorkerPlannerView,
    WorkerView,
)
from serve_app.api.views.jobs import JobError
from serve_app.config import ModelArgs
from serve_app.store import WorkerRow
from serve_app.store.costs import Account
from serve_app.store.decisions import Decision

COST_HOURS: Final = 24
"""The period of the costs in the report, in hours; `sophia cost` covers any period."""


def build_health(context: Context) -> Health:
    """The full report, for operators."""
    workers = living_workers(context)
    problems = context.store.supervisor.problems()
    decisions = decisions_by_model(context)
    scale = {name: _scale(context, workers, name, decisions[name]) for name in context.args.stages}
    return Health(
        status="degraded" if context.storage.failure() else _status(context, scale, problems),
        version=__version__,
        commit=context.commit,
        jobs=context.store.backlog.counts(),  # type: ignore[arg-type]  # the keys are the states
        oldest_wait_s=context.store.backlog.oldest_wait_s(),
        workers=[_worker(context, row) for row in workers],
        breakers={name: _breaker(context, name) for name in context.args.stages},
        scale=scale,
        costs=_costs(context),
        notices=[*problems, *operator_notices(context, workers)],
    )


def for_owner(context: Context, report: Health, owner: str) -> Health:
    """The part of a report that an owner who is no operator may see: no job ids of others, no costs, no folder or bucket names."""
    jobs = context.store.jobs.get_many([worker.job for worker in report.workers if worker.job])
    own = {job.id for job in jobs.values() if job.owner == owner}
    workers = [
        worker.model_copy(update={"job": worker.job if worker.job in own else None}) for worker in report.workers
    ]
    notices = public_notices(context, living_workers(context))
    return report.model_copy(update={"workers": workers, "costs": {}, "notices": notices})


def _status(
    context: Context, scale: dict[str, ScaleView], problems: list[str]
) -> Literal["ok", "starting", "degraded"]:
    needed = models_that_need_workers(context)
    missing = [view for name, view in scale.items() if name in needed and not view.ready]
    if not missing:
        return "degraded" if problems else "ok"
    return "starting" if all(view.starting for view in missing) else "degraded"


def _scale(context: Context, workers: list[WorkerRow], name: str, decisions: list[Decision]) -> ScaleView:
    """`decisions` are the clusters' decisions for the model, this cluster's first."""
    of_it = of_model(workers, name)
    here = decisions[0].cluster
    clusters = [
        _cluster([worker for worker in of_it if (worker.cluster or here) == decision.cluster], decision)
        for decision in decisions
    ]
    return ScaleView(
        ready=count_ready(of_it),
        starting=sum(map(is_starting, of_it)),
        wanted=sum(cluster.wanted for cluster in clusters),
        pending=sum(cluster.pending for cluster in clusters),
        pending_for=(why_not_placed(context, name) or "Ray is starting them") if clusters[0].pending else None,
        reason=decisions[0].reason,
        clusters=clusters,
    )


def _cluster(workers: list[WorkerRow], decision: Decision) -> ClusterView:
    return ClusterView(
        name=decision.cluster,
        ready=count_ready(workers),
        wanted=decision.target,
        pending=max(0, decision.target - len(workers)),
        reason=decision.reason,
    )


def _worker(context: Context, row: WorkerRow) -> WorkerView:
    return WorkerView(
        id=row.id,
        model=row.model,
        node=row.node,
        cluster=row.cluster,
        device=row.device,
        phase=row.phase,
        since=utc(row.phase_since),
        progress=row.progress,
        detail=describe_phase(context, row),
        error=JobError(code=row.error["code"], message=row.error["message"]) if row.error else None,
        job=row.job,
        planner=_planner(row),
        seen_at=utc(row.seen_at),
    )


def _planner(row: WorkerRow) -> WorkerPlannerView | None:
    facts = (row.facts or {}).get("planner")
    if facts is None:
        return None
    return WorkerPlannerView(**{name: facts.get(name) for name in WorkerPlannerView.model_fields})


def _breaker(context: Context, model: str) -> BreakerView:
    breaker = breaker_of(context, model)
    return BreakerView(
        open=breaker.is_open,
        load_runs=breaker.runs,
        hosts=sorted({_host_name(host) for host in breaker.hosts}),
        since=utc(breaker.since) if breaker.since else None,
        error=JobError(code=breaker.code, message=breaker.message) if breaker.runs else None,
    )


def _host_name(host: str) -> str:
    """The name part of a `Process.host`, without boot id and PID namespace."""
    return host.partition("/")[0]


def _costs(context: Context) -> dict[str, CostView]:
    accounts = context.store.costs.accounts(COST_HOURS)
    return {name: _cost(account, context.args.settings_of(name)) for name, account in accounts.items()}


def _cost(account: Account, model: ModelArgs | None) -> CostView:
    has_price = bool(account.use.cost) or bool(model and model.price_per_hour)
    amounts = {
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
        **{name: round(value, 6) if has_price and value is not None else None for name, value in amounts.items()},
    )
