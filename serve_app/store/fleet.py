"""What the autoscaling policy looks at: one model's queue, workers and loads, as one observation a second."""

import statistics
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from serve_app import vault
from serve_app.config import BreakerArgs, ScalingArgs
from serve_app.jobs import Status
from serve_app.scaling import WINDOW_S, WINDOWS, Observation
from serve_app.store import Breaker, Store
from serve_app.store.database import now, statement_time
from serve_app.store.tables import jobs, loads, state_is
from serve_app.store.workers import READY_PHASES

_RECENT = 1000  # loads; more workers than that do not come up within one start-up of each other
_MEASURED_STARTUPS = 20
_LONGEST_STARTUP_S = 1800.0  # what takes longer waited for a card that nobody had, and says nothing of the next start
_ALIVE_S = 60.0  # a worker that said nothing for so long does not count; its host, or its lease, will see to its job


def open_fleet(
    bounds: ScalingArgs, database: str, model: str, deployment: str, breaker: dict[str, float]
) -> "StoreFleet":
    """The Fleet of one model, for the policy's thread in Serve's controller; `database` names its address in the vault."""
    return StoreFleet(Store(vault.read(database)), model, deployment, bounds, BreakerArgs.model_validate(breaker))


class StoreFleet:
    """One model's jobs and workers in the store. Raises StoreUnavailable when it is away."""

    def __init__(self, store: Store, model: str, deployment: str, bounds: ScalingArgs, breaker: BreakerArgs):
        self._store, self._model, self._deployment = store, model, deployment
        self._bounds, self._breaker = bounds, breaker
        self._published: tuple[int, str] | None = None
        self._startups = Startups()

    def observe(self) -> Observation:
        """The present state."""
        speed = self._store.backlog.speed(self._model) or self._bounds.work_prior
        ours = [row for row in self._store.workers.seen(_ALIVE_S) if row.model == self._model]
        draining = [row.id for row in ours if row.phase == "draining"]
        with self._store.database.read() as connection:
            queued, queued_audio_s = connection.execute(self._queued()).one()
            running = connection.execute(self._running(draining)).all()
            ready = connection.execute(self._ready()).all()
            arrivals = self._arrivals(connection, speed)
            idle_s = 0.0 if queued or running else connection.execute(self._last_end()).scalar()
        self._startups.ready(ready)
        ready_now = sum(row.phase in READY_PHASES for row in ours)
        breaker = self._store.loads.breaker(self._model, self._deployment, self._breaker)
        others = any(row.phase not in ("failed", "draining") for row in ours)
        one_host = breaker.is_open and not breaker.everywhere and others
        return Observation(
            queued_jobs=queued,
            queued_work_s=queued_audio_s * speed,
            running_jobs=len(running),
            running_left_s=sum(max(row.audio_seconds * speed - row.ran_s, 0.0) for row in running),
            ready_s=tuple(row.age_s for row in ready),
            startup_s=self._startups.median_s
            or self._store.loads.startup_s(self._model)
            or self._bounds.startup_prior_s,
            arrivals=arrivals,
            idle_s=float("inf") if idle_s is None else idle_s,
            breaker=_in_words(breaker) if breaker.is_open and not one_host else None,
            paused=self._paused(),
            ready_now=ready_now,
            stuck=sum(row.phase == "failed" for row in ours) if one_host else 0,
        )

    def publish(self, target: int, reason: str) -> None:
        """Show the decision in /v1/health; writes only what is new."""
        self._startups.wanted(target)
        if (target, reason) != self._published:
            self._store.decisions.publish(self._model, target, reason)
            self._published = (target, reason)

    def close(self) -> None:
        """Give the connections back."""
        self._store.close()

    def _paused(self) -> str | None:
        pause = self._store.pauses.all().get(self._model)
        return pause.reason if pause else None

    def _queued(self) -> sa.Select[Any]:
        waiting = jobs.c.model == self._model, state_is(Status.QUEUED)
        return sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(jobs.c.audio_seconds), 0.0)).where(*waiting)

    def _running(self, draining: list[str]) -> sa.Select[Any]:
        at_work = jobs.c.model == self._model, state_is(Status.RUNNING), jobs.c.worker.not_in(draining)
        return sa.select(jobs.c.audio_seconds, (now() - jobs.c.started_at).label("ran_s")).where(*at_work)

    def _ready(self) -> sa.Select[Any]:
        """The last loads that worked; how many seconds ago they did, and began."""
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

    def _arrivals(self, connection: sa.Connection, speed: float) -> tuple[tuple[int, float], ...]:
        """(jobs, seconds of work) of each of the last windows, the newest first."""
        # By id, which is indexed and begins with the millisecond of submission: a million older jobs cost nothing.
        since = f"{int((time.time() - WINDOW_S * WINDOWS) * 1000):012x}"
        age_s = statement_time() - jobs.c.created_at
        sums: list[Any] = []
        for window in range(WINDOWS):
            inside = age_s < WINDOW_S if window == 0 else age_s.between(window * WINDOW_S, (window + 1) * WINDOW_S)
            sums += [
                sa.func.count().filter(inside),
                sa.func.coalesce(sa.func.sum(jobs.c.audio_seconds).filter(inside), 0.0),
            ]
        recent = sa.select(*sums).where(jobs.c.id > f"{since[:8]}-{since[8:]}", jobs.c.model == self._model)
        found = connection.execute(recent).one()
        return tuple((found[2 * window], found[2 * window + 1] * speed) for window in range(WINDOWS))

    def _last_end(self) -> sa.Select[Any]:
        ended = jobs.c.model == self._model, state_is(Status.SUCCEEDED)
        return sa.select(now() - sa.func.max(jobs.c.finished_at)).where(*ended)


def _in_words(breaker: Breaker) -> str:
    return f"{breaker.runs} loads failed with {breaker.code}: {breaker.message}"


class Startups:
    """Measures how long a worker takes from being wanted to being ready: its node, its process and its load.

    The oldest wish is the first to be fulfilled. What was not wanted by a decision (the first workers of a deploy, the successor of
    one that died) is not measured.
    """

    def __init__(self) -> None:
        self._target: int | None = None
        self._wishes: deque[float] = deque()
        self._known: set[str] | None = None
        self._measured: deque[float] = deque(maxlen=_MEASURED_STARTUPS)

    @property
    def median_s(self) -> float | None:
        """Of the last ones, in seconds; None before the first."""
        return statistics.median(self._measured) if self._measured else None

    def wanted(self, target: int) -> None:
        """From now on there should be so many workers."""
        more = target - (target if self._target is None else self._target)
        self._target = target
        self._wishes.extend([time.monotonic()] * more)
        for _ in range(min(-more, len(self._wishes))):
            self._wishes.pop()

    def ready(self, last: Sequence[Any]) -> None:
        """The last loads that worked, newest first: `id`, seconds since each ended (`age_s`) and since it began (`began_s`)."""
        new = [] if self._known is None else [load for load in last if load.id not in self._known]
        self._known = {load.id for load in last}
        for load in reversed(new):
            wished_s = time.monotonic() - self._wishes[0] if self._wishes else 0.0
            if wished_s < load.began_s:  # nobody wished for it: the wish is another's
                continue
            self._wishes.popleft()
            if wished_s - load.age_s < _LONGEST_STARTUP_S:
                self._measured.append(wished_s - load.age_s)
