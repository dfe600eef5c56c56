"""Reads one model's queue, workers and load attempts from the store, as the autoscaling policy's observation."""

import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from serve_app.config import BreakerArgs, DatabaseArgs, ScalingArgs, planner_stage
from serve_app.jobs import Status, WorkerPhase
from serve_app.plurals import counted
from serve_app.ray_adapters import ray_kv
from serve_app.scaling.policy import WINDOW_S, WINDOWS, Observation
from serve_app.store import Breaker, Store, WorkerRow
from serve_app.store.clock import now, statement_time
from serve_app.store.plan_rows import PlanState, plan_is
from serve_app.store.tables import jobs, loads, plans, shares, state_is, workers
from serve_app.store.workers import cannot_store

_RECENT: Final = 1000
"""Load attempts to read. Fewer workers than that become ready within one start-up time."""

_MEASURED_STARTUPS: Final = 20
_LONGEST_STARTUP_S: Final = 1800.0
"""A longer start waited for a device that was not free, and does not predict the next one."""

_LATE_COUNTED: Final = 1000
"""With this many late jobs, every waiting job counts as late, since every cluster is needed."""

ALIVE_S: Final = 60.0
"""A worker without a heartbeat for this long does not count. The sweeper returns its job to the queue."""

REPEAT_S: Final = 15.0
"""Seconds after which an unchanged decision is written again. It shows other clusters that this one is alive."""


def open_fleet(
    bounds: ScalingArgs,
    database: str,
    model: str,
    deployment: str,
    *,
    breaker: dict[str, float],
    limits: dict[str, float],
    cluster: str = "",
) -> "StoreFleet":
    """Open one model's fleet, for the policy's thread in Serve's controller. `database` is the `ray_kv` key of its URL."""
    store = Store(ray_kv.get(database), DatabaseArgs.model_validate(limits))
    return StoreFleet(store, model, deployment, bounds, BreakerArgs.model_validate(breaker), cluster=cluster)


@dataclass(frozen=True, slots=True)
class Share:
    """One cluster's even part of the jobs that wait for all clusters. The first clusters get the remainder."""

    rank: int = 0
    clusters: int = 1

    def of(self, count: int, work_s: float) -> tuple[int, float]:
        """The part of `count` jobs with `work_s` seconds of work."""
        ours = count // self.clusters + (self.rank < count % self.clusters)
        return ours, work_s * ours / count if count else 0.0


@dataclass(frozen=True, slots=True)
class _Loading:
    """What the load attempts say about new workers."""

    breaker: str | None
    """Why no worker must be started; None while one may be."""
    stuck: int
    """Workers on hosts where the model cannot be loaded, while it can on others."""
    takes_jobs: bool
    """Whether this cluster can start workers."""


class StoreFleet:
    """One cluster's part of one model's jobs and workers. Its methods raise StoreUnavailable.

    Several clusters may serve one queue. Workers and running jobs belong to one cluster. The clusters that can start workers share
    the waiting jobs evenly. Jobs that have waited too long count for every cluster, since none has taken them.
    """

    def __init__(
        self,
        store: Store,
        model: str,
        deployment: str,
        bounds: ScalingArgs,
        breaker: BreakerArgs,
        *,
        cluster: str = "",
    ) -> None:
        self._store = store
        self._model = model
        self._deployment = deployment
        self._bounds = bounds
        self._breaker = breaker
        self._cluster = cluster
        self._takes_jobs = True
        self._published: tuple[int, str, bool] | None = None
        self._published_at = 0.0
        self._startups = Startups()

    def observe(self) -> Observation:
        """The current state."""
        speed = self._speed() or self._bounds.work_prior
        plan_speed = self._plan_speed(speed)
        share = self._share()
        ours = [row for row in self._store.workers.seen(ALIVE_S) if self._is_ours(row)]
        loading = self._loading(ours)
        self._takes_jobs = loading.takes_jobs
        with self._store.database.read() as connection:
            ready = connection.execute(self._ready()).all()
            self._startups.ready(ready)
            startup_s = self._startup_s()
            queued, queued_audio_s = self._queued(connection, share, startup_s)
            queued += self._without_songs(plan_speed)
            running = connection.execute(self._running(_draining(ours))).all()
            arrivals = self._arrivals(connection, speed, plan_speed, share)
            idle_s = 0.0 if queued or running else connection.execute(self._last_end()).scalar()
        return Observation(
            queued_jobs=int(queued),
            queued_work_s=queued_audio_s * speed + self._planning_s(plan_speed),
            running_jobs=len(running),
            running_left_s=sum(max(row.audio_seconds * speed - row.ran_s, 0.0) for row in running),
            ready_s=tuple(row.age_s for row in ready),
            startup_s=startup_s,
            arrivals=arrivals,
            idle_s=float("inf") if idle_s is None else idle_s,
            breaker=loading.breaker,
            paused=self._paused(),
            unstored=_unstored(ours),
            ready_now=sum(row.phase.is_ready for row in ours),
            stuck=loading.stuck,
            clusters=share.clusters,
        )

    def _loading(self, ours: Sequence[WorkerRow]) -> "_Loading":
        """Whether the model can be loaded. A breaker that is open for some hosts only does not stop workers on other hosts."""
        breaker = self._store.load_attempts.breaker(self._model, self._deployment, self._breaker)
        others_work = any(row.phase not in (WorkerPhase.FAILED, WorkerPhase.DRAINING) for row in ours)
        some_hosts_only = bool(breaker.hosts) and not breaker.everywhere and (others_work or not breaker.is_open)
        if some_hosts_only:
            return _Loading(None, sum(row.phase is WorkerPhase.FAILED for row in ours), takes_jobs=True)
        return _Loading(_breaker_reason(breaker) if breaker.is_open else None, 0, takes_jobs=not breaker.is_open)

    def publish(self, target: int, reason: str) -> None:
        """Write the decision for /v1/health and the other clusters when it is new, and every REPEAT_S seconds."""
        self._startups.wanted(target)
        decision = (target, reason, self._takes_jobs)
        if decision != self._published or time.monotonic() > self._published_at + REPEAT_S:
            self._store.decisions.publish(self._model, target, reason, self._cluster, self._takes_jobs)
            self._published = decision
            self._published_at = time.monotonic()

    def close(self) -> None:
        """Close the database connections."""
        self._store.close()

    def _speed(self) -> float | None:
        """Device seconds for a second of audio, if measured."""
        return self._store.backlog.speed(self._model)

    def _plan_speed(self, speed: float) -> float:
        """Device seconds of these processes for the plan of a second of audio: 0 if they make no plans.

        `speed` is that of songs, which stands in until a plan has been made.
        """
        if self._store.decisions.takers(planner_stage(self._model)):
            return 0.0
        return self._store.plans.speed(self._model) or speed

    def _planning_s(self, plan_speed: float) -> float:
        """Work in the plans that these processes have to make, in seconds."""
        return self._store.plans.audio_to_make(self._model) * plan_speed if plan_speed else 0.0

    def _without_songs(self, plan_speed: float) -> int:
        """The plans without songs that these processes have to make. All others belong to jobs, which are counted."""
        return self._store.plans.without_songs(self._model) if plan_speed else 0

    def _submitted(self) -> sa.Table:
        """The table of what arrives."""
        return jobs

    def _queue_model(self) -> str:
        """The model whose queue it is."""
        return self._model

    def _paused(self) -> str | None:
        pause = self._store.pauses.all().get(self._model)
        return pause.reason if pause else None

    def _share(self) -> Share:
        takers = sorted(self._store.decisions.takers(self._model) | {self._cluster})
        return Share(takers.index(self._cluster), len(takers))

    def _is_ours(self, worker: WorkerRow) -> bool:
        return worker.model == self._model and worker.cluster in self._our_names

    @property
    def _our_names(self) -> tuple[str, ...]:
        """Workers of old versions have no cluster name, and may be ours."""
        return self._cluster, ""

    def _startup_s(self) -> float:
        loading_s = self._store.load_attempts.startup_s(self._model)
        return self._startups.median_s or loading_s or self._bounds.startup_prior_s

    def _queued(self, connection: sa.Connection, share: Share, startup_s: float) -> tuple[int, float]:
        """(jobs, seconds of audio) of this cluster's part of the queue."""
        sums = [sa.func.coalesce(sa.func.sum(shares.c[name]), 0) for name in ("jobs", "audio_s")]
        query = sa.select(*sums).where(shares.c.model == self._model, shares.c.jobs > 0)
        count, audio_s = connection.execute(query).one()
        if share.clusters == 1:
            return int(count), audio_s
        late_count, late_s = connection.execute(self._late(startup_s)).one()
        if late_count >= _LATE_COUNTED:
            return int(count), audio_s
        shared, shared_s = share.of(max(int(count) - late_count, 0), max(audio_s - late_s, 0.0))
        return shared + late_count, shared_s + late_s

    def _late(self, startup_s: float) -> sa.Select[Any]:
        """(jobs, seconds of audio) that have waited for longer than they should, up to _LATE_COUNTED jobs."""
        late = jobs.c.created_at < statement_time() - (self._bounds.target_wait_s + startup_s)
        waiting = sa.select(jobs.c.audio_seconds).where(jobs.c.model == self._model, state_is(Status.QUEUED), late)
        first = waiting.order_by(jobs.c.created_at).limit(_LATE_COUNTED).subquery()
        return sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(first.c.audio_seconds), 0.0))

    def _running(self, draining: list[str]) -> sa.Select[Any]:
        others = sa.select(workers.c.id).where(workers.c.cluster.not_in(self._our_names))
        ours = jobs.c.worker.not_in(draining), jobs.c.worker.not_in(others)
        at_work = jobs.c.model == self._model, state_is(Status.RUNNING), *ours
        return sa.select(jobs.c.audio_seconds, (now() - jobs.c.started_at).label("ran_s")).where(*at_work)

    def _ready(self) -> sa.Select[Any]:
        """The last successful loads, newest first: `id`, and the seconds since each ended (`age_s`) and began (`began_s`)."""
        ours = loads.c.model == self._model, loads.c.deployment == self._deployment
        worked = loads.c.ended_at.is_not(None), loads.c.code.is_(None)
        return (
            sa.select(
                loads.c.id, (now() - loads.c.ended_at).label("age_s"), (now() - loads.c.began_at).label("began_s")
            )
            .where(*ours, *worked)
            .order_by(loads.c.ended_at.desc())
            .limit(_RECENT)
        )

    def _arrivals(
        self, connection: sa.Connection, speed: float, plan_speed: float, share: Share
    ) -> tuple[tuple[int, float], ...]:
        """(jobs, seconds of work) of this cluster's part of each of the last windows, newest first."""
        arrived = self._arrived(connection, self._submitted())
        to_plan = self._arrived(connection, plans, *_to_be_made()) if plan_speed else [(0, 0.0)] * WINDOWS
        return tuple(
            share.of(count, audio_s * speed + plan_audio_s * plan_speed)
            for (count, audio_s), (_, plan_audio_s) in zip(arrived, to_plan, strict=True)
        )

    def _arrived(self, connection: sa.Connection, table: sa.Table, *which: Any) -> list[tuple[int, float]]:
        """(rows, seconds of audio) that were added to `table` in each of the last windows, newest first."""
        # The id is indexed and begins with the millisecond of submission, so a million older jobs cost nothing.
        since = f"{int((time.time() - WINDOW_S * WINDOWS) * 1000):012x}"
        age_s = statement_time() - table.c.created_at
        sums: list[Any] = []
        for window in range(WINDOWS):
            inside = age_s < WINDOW_S if window == 0 else age_s.between(window * WINDOW_S, (window + 1) * WINDOW_S)
            sums += [
                sa.func.count().filter(inside),
                sa.func.coalesce(sa.func.sum(table.c.audio_seconds).filter(inside), 0.0),
            ]
        ours = (table.c.id > f"{since[:8]}-{since[8:]}", table.c.model == self._queue_model())
        recent = sa.select(*sums).where(*ours, *which)
        found = connection.execute(recent).one()
        return [(found[2 * window], found[2 * window + 1]) for window in range(WINDOWS)]

    def _last_end(self) -> sa.Select[Any]:
        ended = jobs.c.model == self._model, state_is(Status.SUCCEEDED)
        return sa.select(now() - sa.func.max(jobs.c.finished_at)).where(*ended)


def _to_be_made() -> tuple[Any, ...]:
    """The condition that a plan was not brought by its request."""
    brought = sa.and_(plan_is(PlanState.DONE), plans.c.attempt == 0)
    return (sa.not_(brought),)


def _breaker_reason(breaker: Breaker) -> str:
    return f"{counted(breaker.runs, 'failure')} with {breaker.code}: {breaker.message}"


class Startups:
    """Measures the time from the decision for a worker until it is ready: node, process and load.

    The oldest request is the first to be met. Workers that no decision asked for (the first ones of a deploy, the replacement of
    a dead one) are not measured.
    """

    def __init__(self) -> None:
        self._target: int | None = None
        self._requests: deque[float] = deque()
        self._known: set[str] | None = None
        self._measured: deque[float] = deque(maxlen=_MEASURED_STARTUPS)

    @property
    def median_s(self) -> float | None:
        """Median of the last measured start-ups, in seconds. None before the first."""
        return statistics.median(self._measured) if self._measured else None

    def wanted(self, target: int) -> None:
        """Record that a decision wants `target` workers from now on."""
        more = target - (target if self._target is None else self._target)
        self._target = target
        self._requests.extend([time.monotonic()] * more)
        for _ in range(min(-more, len(self._requests))):
            self._requests.pop()

    def ready(self, last: Sequence[Any]) -> None:
        """Match new successful loads to the oldest requests. `last` has the columns of `_ready`, newest first."""
        new = [] if self._known is None else [load for load in last if load.id not in self._known]
        self._known = {load.id for load in last}
        for load in reversed(new):
            requested_s = time.monotonic() - self._requests[0] if self._requests else 0.0
            if requested_s < load.began_s:
                # This load began before the oldest request, so it cannot be the answer to it. Leave the request for another worker.
                continue
            self._requests.popleft()
            if requested_s - load.age_s < _LONGEST_STARTUP_S:
                self._measured.append(requested_s - load.age_s)


def _draining(workers: Sequence[WorkerRow]) -> list[str]:
    return [row.id for row in workers if row.phase is WorkerPhase.DRAINING]


def _unstored(workers: list[WorkerRow]) -> str | None:
    refused = [row.error for row in workers if row.error and row.phase.is_ready and cannot_store(row)]
    return str(refused[0]["public"]) if refused else None
