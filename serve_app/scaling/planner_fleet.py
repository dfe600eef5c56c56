"""Reads the queue and the processes of a model's planner, as the autoscaling policy's observation.

A process plans many jobs at once, so the policy counts in batches: the waiting plans divided by `jobs_at_once`, and the processes
that are planning.

With `placement: auto`, each worker measures whether the planner fits beside the model and reports who plans
(`worker/worker.py`). No process that only plans is started before a worker has asked for it, nor while a worker plans.
"""

from dataclasses import replace
from math import ceil
from typing import Any, Final, Literal

import sqlalchemy as sa

from serve_app.config import BreakerArgs, DatabaseArgs, PlannerArgs, ScalingArgs, planner_stage
from serve_app.ray_adapters import ray_kv
from serve_app.scaling.observation import ALIVE_S, Share, StoreFleet
from serve_app.scaling.policy import Observation
from serve_app.store import Store
from serve_app.store.clock import now
from serve_app.store.plan_rows import PlanState, plan_is
from serve_app.store.tables import plans, workers

Place = Literal["worker", "own"]

_UNNEEDED: Final[dict[Place | None, str]] = {
    None: "no worker has measured yet whether the planner fits beside the model (placement: auto)",
    "worker": "the workers plan: the planner fits beside the model (placement: auto)",
}
"""Why no process that only plans is of use, by who plans."""


def open_planner_fleet(
    bounds: ScalingArgs,  # noqa: ARG001 - the policy gives them to every fleet; these are in the planner's settings, too
    database: str,
    planner: dict[str, Any],
    **source: Any,
) -> "PlannerFleet":
    """Open the fleet of a model's planner, as `open_fleet` opens that of its workers.

    `planner` are its PlannerArgs as JSON; `source` has the rest of `open_fleet`'s arguments.
    """
    store = Store(ray_kv.get(database), DatabaseArgs.model_validate(source["limits"]))
    return PlannerFleet(
        store,
        source["model"],
        source["deployment"],
        PlannerArgs.model_validate(planner),
        BreakerArgs.model_validate(source["breaker"]),
        cluster=source["cluster"],
    )


class PlannerFleet(StoreFleet):
    """One cluster's part of the plans of one model, and of the processes that make them."""

    def __init__(
        self,
        store: Store,
        model: str,
        deployment: str,
        planner: PlannerArgs,
        breaker: BreakerArgs,
        *,
        cluster: str = "",
    ) -> None:
        super().__init__(store, planner_stage(model), deployment, planner.scaling, breaker, cluster=cluster)
        self._planned_model = model
        self._planner = planner
        self._place: Place | None = None
        """Who plans, as the workers of this model last said it: they may be scaled to zero meanwhile."""

    def observe(self) -> Observation:
        """The current state."""
        seen = super().observe()
        if not self._planner.follows_workers:
            return seen
        self._place = self._place_by_workers() or self._place
        unneeded = _UNNEEDED.get(self._place)
        self._takes_jobs = self._takes_jobs and unneeded is None
        return replace(seen, unneeded=unneeded)

    def _place_by_workers(self) -> Place | None:
        """Who plans: the workers as soon as one of them does. None without a worker that has loaded the model."""
        rows = self._store.workers.seen(ALIVE_S)
        ours = [row for row in rows if row.model == self._planned_model and row.cluster in self._our_names]
        places = {row.facts["planner"]["placement"] for row in ours if row.facts and "planner" in row.facts}
        if "worker" in places:
            return "worker"
        return "own" if "own" in places else None

    def _speed(self) -> float | None:
        return self._store.plans.speed(self._planned_model)

    def _paused(self) -> str | None:
        pause = self._store.pauses.all().get(self._planned_model)
        return pause.reason if pause else None

    def _queued(self, connection: sa.Connection, share: Share, startup_s: float) -> tuple[int, float]:  # noqa: ARG002
        """(batches, seconds of audio) of this cluster's part of the waiting plans."""
        sums = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(plans.c.audio_seconds), 0.0))
        waiting = (plans.c.model == self._planned_model, plan_is(PlanState.WAITING))
        count, audio_s = connection.execute(sums.where(*waiting)).one()
        ours, ours_s = share.of(int(count), audio_s)
        return ceil(ours / self._planner.jobs_at_once), ours_s

    def _plan_speed(self, speed: float) -> float:  # noqa: ARG002
        return 0.0  # plans are the queue itself

    def _running(self, draining: list[str]) -> sa.Select[Any]:
        """One row for each process that plans: its plans' `audio_seconds`, and for how long the last one has been made."""
        others = sa.select(workers.c.id).where(workers.c.cluster.not_in(self._our_names))
        ours = plans.c.worker.not_in(draining), plans.c.worker.not_in(others)
        columns: list[Any] = [
            sa.func.sum(plans.c.audio_seconds).label("audio_seconds"),
            (now() - sa.func.max(plans.c.started_at)).label("ran_s"),
        ]
        at_work = plans.c.model == self._planned_model, plan_is(PlanState.PLANNING), *ours
        return sa.select(*columns).where(*at_work).group_by(plans.c.worker)

    def _submitted(self) -> sa.Table:
        return plans

    def _last_end(self) -> sa.Select[Any]:
        ended = plans.c.model == self._planned_model, plan_is(PlanState.DONE)
        since: sa.Select[Any] = sa.select(now() - sa.func.max(plans.c.finished_at)).where(*ended)
        return since

    def _queue_model(self) -> str:
        return self._planned_model
